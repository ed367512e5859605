/** What the parts of the plugin share: one of each, made in `begin.ts`. */
import type { JupyterFrontEnd } from '@jupyterlab/application';
import type { INotebookTracker } from '@jupyterlab/notebook';
import type { TranslationBundle } from '@jupyterlab/translation';

import type { Actions } from './actions';
import type { Api } from './api';
import type { ClusterActions } from './cluster-actions';
import type { KeptLayout, TabName } from './layout';
import type { Live } from './live';
import type { Model } from './model';
import type { Preferences } from './settings';

export interface Desk {
  readonly app: JupyterFrontEnd;
  readonly api: Api;
  readonly model: Model;
  readonly live: Live;
  readonly words: TranslationBundle;
  readonly notebooks: INotebookTracker | null;
  readonly layout: KeptLayout;
  preferences: Preferences;
  /** Show a tab of the sidebar. */
  open(tab: TabName): void;
  /** What the commands do: fetched when the first is used. */
  actions(): Promise<Actions>;
  clusterActions(): Promise<ClusterActions>;
}
