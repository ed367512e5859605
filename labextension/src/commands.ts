/** Everything that a user can do, as JupyterLab commands. What spends or ends something asks in a dialog of its own. */
import { LabIcon } from '@jupyterlab/ui-components';

import type { Desk } from './desk';
import { CARD, CLOCK, COINS, PLAY_ON_CARD, REFRESH } from './icons';

export const CATEGORY = 'GPU Market';

export const ids = {
  offers: 'gpumarket:open-offers',
  running: 'gpumarket:open-running',
  costs: 'gpumarket:open-costs',
  refresh: 'gpumarket:refresh',
  runOnGpu: 'gpumarket:run-on-gpu'
} as const;

export const icons = {
  card: new LabIcon({ name: 'gpumarket:card', svgstr: CARD }),
  clock: new LabIcon({ name: 'gpumarket:clock', svgstr: CLOCK }),
  coins: new LabIcon({ name: 'gpumarket:coins', svgstr: COINS }),
  play: new LabIcon({ name: 'gpumarket:play', svgstr: PLAY_ON_CARD }),
  refresh: new LabIcon({ name: 'gpumarket:refresh', svgstr: REFRESH })
};

const NOTHING = { args: { type: 'object', properties: {}, additionalProperties: false } } as const;
const MAGIC = '%%gpu';

/** The cell's code with the magic on top; unchanged where it is there already. */
function withMagic(source: string): string {
  return source.trimStart().startsWith(MAGIC) ? source : `${MAGIC}\n${source}`;
}

export function addCommands(desk: Desk): void {
  const { app, words, notebooks } = desk;
  const { commands } = app;
  commands.addCommand(ids.offers, {
    label: words.__('Find and Rent a GPU'),
    caption: words.__('Show what GPUs can be rented now, and their prices'),
    icon: icons.card,
    describedBy: NOTHING,
    execute: () => desk.open('offers')
  });
  commands.addCommand(ids.running, {
    label: words.__('Running GPU Nodes'),
    caption: words.__('Show what is rented, what it does and what it costs'),
    icon: icons.clock,
    describedBy: NOTHING,
    execute: () => desk.open('running')
  });
  commands.addCommand(ids.costs, {
    label: words.__('GPU Costs and Budgets'),
    caption: words.__('Show what was spent, on what, and the budgets'),
    icon: icons.coins,
    describedBy: NOTHING,
    execute: () => desk.open('costs')
  });
  commands.addCommand(ids.refresh, {
    label: words.__('Refresh GPU Nodes'),
    caption: words.__('Look now at what is rented'),
    icon: icons.refresh,
    describedBy: NOTHING,
    execute: () => desk.live.look()
  });
  commands.addCommand(ids.runOnGpu, {
    label: words.__('Run This Cell on a GPU'),
    caption: words.__('Put %%gpu on the active cell, so that it runs on a rented machine'),
    icon: icons.play,
    describedBy: NOTHING,
    isEnabled: () => notebooks?.activeCell?.model.type === 'code',
    execute: () => {
      const model = notebooks?.activeCell?.model;
      if (model?.type === 'code') {
        model.sharedModel.setSource(withMagic(model.sharedModel.getSource()));
      }
    }
  });
}
