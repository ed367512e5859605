/**
 * The JupyterLab plugin as JupyterLab starts it: an empty place in the sidebar and the commands' names. All that they need
 * is fetched after the application is restored, so that a start costs as good as nothing.
 */
import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ILayoutRestorer } from '@jupyterlab/application';
import { ICommandPalette } from '@jupyterlab/apputils';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';

import type { Begun } from './begin';
import { CATEGORY, Commands, icons, ids } from './commands';
import { Place } from './place';

const PLUGIN = 'jupyter-gpumarket:plugin';

function activate(
  app: JupyterFrontEnd,
  palette: ICommandPalette | null,
  restorer: ILayoutRestorer | null,
  translator: ITranslator | null
): void {
  const words = (translator ?? nullTranslator).load('jupyter_gpumarket');
  let begun: Promise<Begun> | null = null;
  const begin = (): Promise<Begun> => {
    begun ??= app.restored
      .then(() => import('./begin'))
      .then(({ begin: now }) => now({ app, words, place, plugin: PLUGIN, changed: commands.changed }))
      .then(parts => {
        commands.begun = parts;
        commands.changed();
        return parts;
      });
    // What could not be fetched is fetched again when it is next wanted.
    begun.catch(() => (begun = null));
    return begun;
  };
  const place = new Place(words, async node => (await begin()).fill(node));
  place.title.icon = icons.card;
  place.title.caption = words.__('GPU market');
  const commands = new Commands(app.commands, words, begin);
  app.shell.add(place, 'left', { rank: 650, type: CATEGORY });
  restorer?.add(place, place.id);
  Object.values(ids).forEach(command => palette?.addItem({ command, category: CATEGORY }));
  void app.restored.then(begin);
}

const plugin: JupyterFrontEndPlugin<void> = {
  id: PLUGIN,
  description: 'Finds, rents, watches and stops GPUs, and tells what they cost.',
  autoStart: true,
  optional: [ICommandPalette, ILayoutRestorer, ITranslator],
  activate
};

export default plugin;
