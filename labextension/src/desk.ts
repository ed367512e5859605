/** What the parts of the plugin share: one of each, made in `index.ts`. */
import type { JupyterFrontEnd } from '@jupyterlab/application';
import type { INotebookTracker } from '@jupyterlab/notebook';
import type { TranslationBundle } from '@jupyterlab/translation';

import type { Api } from './api';
import type { Live } from './live';
import type { Model } from './model';
import type { TabName } from './panel';
import type { Preferences } from './settings';
import type { CostQuery } from './types';

export interface Desk {
  readonly app: JupyterFrontEnd;
  readonly api: Api;
  readonly model: Model;
  readonly live: Live;
  readonly words: TranslationBundle;
  readonly notebooks: INotebookTracker | null;
  preferences: Preferences;
  /** Show a tab of the sidebar. */
  open(tab: TabName): void;
  /** The time whose costs are shown. */
  costSpan(): CostQuery;
}
