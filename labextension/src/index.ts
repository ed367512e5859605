/**
 * The JupyterLab plugin: for now one command, which puts `%%gpu` on the active cell.
 */
import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ICommandPalette } from '@jupyterlab/apputils';
import { INotebookTracker } from '@jupyterlab/notebook';

const MAGIC = '%%gpu';
const RUN_ON_GPU = 'gpumarket:run-on-gpu';

/** The cell's code with the magic on top; unchanged where it is there already. */
function withMagic(source: string): string {
  return source.trimStart().startsWith(MAGIC) ? source : `${MAGIC}\n${source}`;
}

const plugin: JupyterFrontEndPlugin<void> = {
  id: 'jupyter-gpumarket:plugin',
  description: 'Puts notebook cells on rented GPUs.',
  autoStart: true,
  requires: [INotebookTracker],
  optional: [ICommandPalette],
  activate: (app: JupyterFrontEnd, notebooks: INotebookTracker, palette: ICommandPalette | null) => {
    app.commands.addCommand(RUN_ON_GPU, {
      label: 'Run This Cell on a GPU',
      caption: 'Put %%gpu on the active cell, so that it runs on a rented machine',
      describedBy: { args: { type: 'object', properties: {}, additionalProperties: false } },
      isEnabled: () => notebooks.activeCell?.model.type === 'code',
      execute: () => {
        const model = notebooks.activeCell?.model;
        if (model?.type === 'code') {
          model.sharedModel.setSource(withMagic(model.sharedModel.getSource()));
        }
      }
    });
    palette?.addItem({ command: RUN_ON_GPU, category: 'GPU Market' });
  }
};

export default plugin;
