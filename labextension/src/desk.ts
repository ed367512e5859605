/** What the parts of the plugin share: one of each, made in `index.ts`. */
import type { JupyterFrontEnd } from '@jupyterlab/application';
import type { INotebookTracker } from '@jupyterlab/notebook';
import type { TranslationBundle } from '@jupyterlab/translation';

import type { Api } from './api';
import type { Live } from './live';
import type { Model } from './model';
import type { Panel, TabName } from './panel';
import type { Preferences } from './settings';

export interface Desk {
  readonly app: JupyterFrontEnd;
  readonly api: Api;
  readonly model: Model;
  readonly live: Live;
  readonly words: TranslationBundle;
  readonly notebooks: INotebookTracker | null;
  readonly panel: Panel;
  preferences: Preferences;
  open(tab: TabName): void;
}
