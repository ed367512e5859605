/** What runs from the moment on in which JupyterLab is restored: it connects the parts, and holds nothing itself. */
import type { JupyterFrontEnd } from '@jupyterlab/application';
import { INotebookTracker } from '@jupyterlab/notebook';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { IStateDB } from '@jupyterlab/statedb';
import type { TranslationBundle } from '@jupyterlab/translation';

import { Api } from './api';
import { Cells } from './cells';
import type { Desk } from './desk';
import { addExtras } from './extras';
import { onSeen, surroundings } from './lab';
import { KeptLayout } from './layout';
import { Live } from './live';
import { Model } from './model';
import sheet from './page.css';
import type { Inside, Place } from './place';
import { USUAL, preferences } from './settings';
import { useSheet } from './sheet';
import { jupyterSend } from './transport';

export interface Beginning {
  readonly app: JupyterFrontEnd;
  readonly words: TranslationBundle;
  readonly place: Place;
  readonly plugin: string;
  /** What commands can be used may have changed. */
  readonly changed: () => void;
}

export interface Begun {
  readonly desk: Desk;
  readonly cells: Cells;
  fill(node: HTMLElement): Promise<Inside>;
}

const rest = (): Promise<typeof import('./rest')> => import('./rest');

export async function begin({ app, words, place, plugin, changed }: Beginning): Promise<Begun> {
  useSheet('page', sheet);
  const [notebooks, registry, state] = await Promise.all([
    app.resolveOptionalService(INotebookTracker),
    app.resolveOptionalService(ISettingRegistry),
    app.resolveOptionalService(IStateDB)
  ]);
  const model = new Model();
  const api = new Api(jupyterSend(app.serviceManager.serverSettings));
  const live = new Live(api, model, surroundings());
  const layout = new KeptLayout(state);
  const desk: Desk = {
    app,
    api,
    model,
    live,
    words,
    notebooks,
    layout,
    preferences: USUAL,
    open: tab => {
      app.shell.activateById(place.id);
      place.choose(tab);
    },
    actions: async () => new (await rest()).Actions(desk),
    clusterActions: async () => new (await rest()).ClusterActions(desk)
  };
  const cells = new Cells(desk);
  await layout.read();
  void registry?.load(plugin).then(settings => {
    const read = (): void => {
      desk.preferences = preferences(settings.composite);
      live.setRefresh(desk.preferences.refreshMs);
      place.drawSoon();
      cells.redraw();
    };
    settings.changed.connect(read);
    read();
  });
  app.serviceManager.events.stream.connect((_, event) => live.notice(event));
  onSeen(() => live.soon());
  let wasRenting = false;
  model.changed.connect(() => {
    if (model.now.leases.length > 0 !== wasRenting) {
      wasRenting = !wasRenting;
      changed();
    }
  });
  live.start();
  void addExtras(desk);
  return { desk, cells, fill: async node => (await rest()).sidebar(node, desk) };
}
