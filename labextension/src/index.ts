/** The JupyterLab plugin: connects the parts, and holds nothing itself. */
import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ILayoutRestorer } from '@jupyterlab/application';
import { ICommandPalette } from '@jupyterlab/apputils';
import { INotebookTracker } from '@jupyterlab/notebook';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';

import { Api } from './api';
import { CATEGORY, addCommands, icons, ids } from './commands';
import type { Desk } from './desk';
import { surroundings } from './lab';
import { Live } from './live';
import { Model } from './model';
import { OffersTab } from './offers-tab';
import type { Pane, TabName } from './panel';
import { Panel } from './panel';
import { USUAL, preferences } from './settings';
import { jupyterSend } from './transport';

const PLUGIN = 'jupyter-gpumarket:plugin';

function activate(
  app: JupyterFrontEnd,
  notebooks: INotebookTracker | null,
  palette: ICommandPalette | null,
  restorer: ILayoutRestorer | null,
  registry: ISettingRegistry | null,
  translator: ITranslator | null
): void {
  const words = (translator ?? nullTranslator).load('jupyter_gpumarket');
  const model = new Model();
  const api = new Api(jupyterSend(app.serviceManager.serverSettings));
  const live = new Live(api, model, surroundings());
  const open = (tab: TabName): void => {
    app.shell.activateById(desk.panel.id);
    desk.panel.choose(tab);
  };
  const desk: Desk = { app, api, model, live, words, notebooks, preferences: USUAL, open, panel: newPanel() };

  function newPanel(): Panel {
    const nothing: Pane = { draw: () => undefined, setVisible: () => undefined, dispose: () => undefined };
    const panes = {
      offers: (host: HTMLElement): Pane =>
        new OffersTab(host, {
          api,
          manner: () => ({ words, currency: desk.preferences.currency }),
          preferences: () => desk.preferences,
          rented: () => live.soon()
        }),
      running: () => nothing,
      costs: () => nothing
    };
    const watched = (is: boolean): void => live.setWatched(is);
    return new Panel({ model, words: () => words, panes, watched, tab: 'offers', tabChosen: () => undefined });
  }

  desk.panel.title.icon = icons.card;
  desk.panel.title.caption = words.__('GPU market');
  app.shell.add(desk.panel, 'left', { rank: 650, type: 'GPU Market' });
  restorer?.add(desk.panel, desk.panel.id);
  addCommands(desk);
  Object.values(ids).forEach(command => palette?.addItem({ command, category: CATEGORY }));
  void registry?.load(PLUGIN).then(settings => {
    const read = (): void => {
      desk.preferences = preferences(settings.composite);
      live.setRefresh(desk.preferences.refreshMs);
      desk.panel.drawSoon();
    };
    settings.changed.connect(read);
    read();
  });
  app.serviceManager.events.stream.connect((_, event) => live.notice(event));
  void app.restored.then(() => live.start());
}

const plugin: JupyterFrontEndPlugin<void> = {
  id: PLUGIN,
  description: 'Finds, rents, watches and stops GPUs, and tells what they cost.',
  autoStart: true,
  optional: [INotebookTracker, ICommandPalette, ILayoutRestorer, ISettingRegistry, ITranslator],
  activate
};

export default plugin;
