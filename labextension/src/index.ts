/** The JupyterLab plugin: connects the parts, and holds nothing itself. */
import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ILayoutRestorer } from '@jupyterlab/application';
import { ICommandPalette } from '@jupyterlab/apputils';
import { INotebookTracker } from '@jupyterlab/notebook';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { IStateDB } from '@jupyterlab/statedb';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';

import { Actions } from './actions';
import { Api } from './api';
import { Cells } from './cells';
import { CATEGORY, addCommands, ids } from './commands';
import type { Desk } from './desk';
import { addExtras } from './extras';
import { onSeen, surroundings } from './lab';
import { Live } from './live';
import { Model } from './model';
import { USUAL, preferences } from './settings';
import { newSidebar } from './sidebar';
import { jupyterSend } from './transport';

const PLUGIN = 'jupyter-gpumarket:plugin';

function activate(
  app: JupyterFrontEnd,
  notebooks: INotebookTracker | null,
  palette: ICommandPalette | null,
  restorer: ILayoutRestorer | null,
  registry: ISettingRegistry | null,
  state: IStateDB | null,
  translator: ITranslator | null
): void {
  const model = new Model();
  const api = new Api(jupyterSend(app.serviceManager.serverSettings));
  const live = new Live(api, model, surroundings());
  const desk: Desk = {
    app,
    api,
    model,
    live,
    words: (translator ?? nullTranslator).load('jupyter_gpumarket'),
    notebooks,
    preferences: USUAL,
    open: tab => {
      app.shell.activateById(panel.id);
      panel.choose(tab);
    },
    costSpan: () => costs.query
  };
  const actions = new Actions(desk);
  const { panel, costs } = newSidebar(desk, actions, state);
  const cells = new Cells(desk, actions);
  app.shell.add(panel, 'left', { rank: 650, type: CATEGORY });
  restorer?.add(panel, panel.id);
  addCommands(desk, actions, cells);
  Object.values(ids).forEach(command => palette?.addItem({ command, category: CATEGORY }));
  void registry?.load(PLUGIN).then(settings => {
    const read = (): void => {
      desk.preferences = preferences(settings.composite);
      live.setRefresh(desk.preferences.refreshMs);
      panel.drawSoon();
      cells.redraw();
    };
    settings.changed.connect(read);
    read();
  });
  app.serviceManager.events.stream.connect((_, event) => live.notice(event));
  onSeen(() => live.soon());
  void app.restored.then(() => {
    live.start();
    void addExtras(desk, actions);
  });
}

const plugin: JupyterFrontEndPlugin<void> = {
  id: PLUGIN,
  description: 'Finds, rents, watches and stops GPUs, and tells what they cost.',
  autoStart: true,
  optional: [INotebookTracker, ICommandPalette, ILayoutRestorer, ISettingRegistry, IStateDB, ITranslator],
  activate
};

export default plugin;
