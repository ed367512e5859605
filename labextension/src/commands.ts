/** Everything that a user can do, as JupyterLab commands. What spends or ends something asks in a dialog of its own. */
import { LabIcon } from '@jupyterlab/ui-components';
import type { CommandRegistry } from '@lumino/commands';

import type { Actions } from './actions';
import type { Cells } from './cells';
import type { Desk } from './desk';
import { CARD, CLOCK, COINS, LOG, PLAY_ON_CARD, REFRESH, STOP } from './icons';
import type { ExportFormat } from './types';

export const CATEGORY = 'GPU Market';

export const ids = {
  offers: 'gpumarket:open-offers',
  running: 'gpumarket:open-running',
  costs: 'gpumarket:open-costs',
  refresh: 'gpumarket:refresh',
  release: 'gpumarket:release',
  releaseAll: 'gpumarket:release-all',
  extend: 'gpumarket:extend',
  session: 'gpumarket:open-session',
  log: 'gpumarket:show-log',
  budget: 'gpumarket:set-budget',
  exportCosts: 'gpumarket:export-costs',
  runOnGpu: 'gpumarket:run-on-gpu',
  cellCost: 'gpumarket:show-cell-cost',
  attach: 'gpumarket:attach-run'
} as const;

export const icons = {
  card: new LabIcon({ name: 'gpumarket:card', svgstr: CARD }),
  clock: new LabIcon({ name: 'gpumarket:clock', svgstr: CLOCK }),
  coins: new LabIcon({ name: 'gpumarket:coins', svgstr: COINS }),
  log: new LabIcon({ name: 'gpumarket:log', svgstr: LOG }),
  play: new LabIcon({ name: 'gpumarket:play', svgstr: PLAY_ON_CARD }),
  refresh: new LabIcon({ name: 'gpumarket:refresh', svgstr: REFRESH }),
  stop: new LabIcon({ name: 'gpumarket:stop', svgstr: STOP })
};

type Args = Readonly<Record<string, unknown>>;

function text(args: Args, name: string): string {
  const value = args[name];
  return typeof value === 'string' ? value : '';
}

function described(properties: Record<string, { type: 'string'; description: string; enum?: string[] }>) {
  return { args: { type: 'object' as const, properties } };
}

const NOTHING = described({});
const LEASE = described({
  lease: { type: 'string', description: 'Id or name of the lease; without it, the only one, or the one that is chosen.' }
});
const FORMAT = described({
  format: { type: 'string', description: 'Of the file.', enum: ['csv', 'parquet', 'html'] }
});

function format(args: Args): ExportFormat {
  const value = args['format'];
  return value === 'parquet' || value === 'html' ? value : 'csv';
}

/** Every command by its id. */
function table(desk: Desk, actions: Actions, cells: Cells): Readonly<Record<string, CommandRegistry.ICommandOptions>> {
  const { words } = desk;
  const isRenting = (): boolean => desk.model.now.leases.length > 0;
  return {
    [ids.offers]: {
      label: args => (args['isLauncher'] === true ? words.__('Rent a GPU') : words.__('Find and Rent a GPU')),
      caption: words.__('Show what GPUs can be rented now, and their prices'),
      icon: icons.card,
      describedBy: NOTHING,
      execute: () => desk.open('offers')
    },
    [ids.running]: {
      label: words.__('Running GPU Nodes'),
      caption: words.__('Show what is rented, what it does and what it costs'),
      icon: icons.clock,
      describedBy: NOTHING,
      execute: () => desk.open('running')
    },
    [ids.costs]: {
      label: words.__('GPU Costs and Budgets'),
      caption: words.__('Show what was spent, on what, and the budgets'),
      icon: icons.coins,
      describedBy: NOTHING,
      execute: () => desk.open('costs')
    },
    [ids.refresh]: {
      label: words.__('Refresh GPU Nodes'),
      caption: words.__('Look now at what is rented'),
      icon: icons.refresh,
      describedBy: NOTHING,
      execute: () => desk.live.look()
    },
    [ids.release]: {
      label: words.__('Release a GPU Node…'),
      caption: words.__('Give a node back, so that it bills no longer; asks first'),
      icon: icons.stop,
      describedBy: LEASE,
      isEnabled: isRenting,
      execute: args => actions.release(text(args, 'lease'))
    },
    [ids.releaseAll]: {
      label: words.__('Release All GPU Nodes…'),
      caption: words.__('Give every node back; asks first'),
      icon: icons.stop,
      describedBy: NOTHING,
      isEnabled: isRenting,
      execute: () => actions.releaseAll()
    },
    [ids.extend]: {
      label: words.__('Extend a GPU Node…'),
      caption: words.__('Agree to more time or a larger budget for a node; asks how much'),
      icon: icons.clock,
      describedBy: LEASE,
      isEnabled: isRenting,
      execute: args => actions.extend(text(args, 'lease'))
    },
    [ids.session]: {
      label: words.__('Open a Session on a GPU Node'),
      caption: words.__('Open the notebook of a node, or a new one that runs there'),
      icon: icons.play,
      describedBy: LEASE,
      isEnabled: isRenting,
      execute: args => actions.openSession(text(args, 'lease'))
    },
    [ids.log]: {
      label: words.__('Show the Log of a GPU Node'),
      caption: words.__('Show what set-up and agent logged on a node'),
      icon: icons.log,
      describedBy: LEASE,
      isEnabled: isRenting,
      execute: args => actions.showLog(text(args, 'lease'))
    },
    ...costCommands(desk, actions),
    ...cellCommands(desk, cells)
  };
}

function costCommands(desk: Desk, actions: Actions): Readonly<Record<string, CommandRegistry.ICommandOptions>> {
  const { words } = desk;
  return {
    [ids.budget]: {
      label: words.__('Set a GPU Budget…'),
      caption: words.__('Set or take away a limit for a notebook, user or project'),
      icon: icons.coins,
      describedBy: NOTHING,
      execute: () => actions.setBudget(null)
    },
    [ids.exportCosts]: {
      label: args => words.__('Export GPU Costs as %1', format(args).toUpperCase()),
      caption: words.__('Save the costs of the chosen time as a file'),
      icon: icons.coins,
      describedBy: FORMAT,
      execute: args => actions.exportCosts(format(args), desk.costSpan())
    }
  };
}

function cellCommands(desk: Desk, cells: Cells): Readonly<Record<string, CommandRegistry.ICommandOptions>> {
  const { words } = desk;
  return {
    [ids.runOnGpu]: {
      label: words.__('Run This Cell on a GPU'),
      caption: words.__('Put %1 on the active cell, so that it runs on a rented machine', '%%gpu'),
      icon: icons.play,
      describedBy: NOTHING,
      isEnabled: () => cells.isCode,
      execute: () => cells.addMagic()
    },
    [ids.cellCost]: {
      label: words.__('Show What This Cell Cost'),
      caption: words.__('Show what the last run of the active cell cost, exactly'),
      icon: icons.coins,
      describedBy: NOTHING,
      isEnabled: () => cells.runId !== '',
      execute: () => cells.showCost()
    },
    [ids.attach]: {
      label: words.__('Show This Cell’s Output Again'),
      caption: words.__('Attach to the last run of the active cell, also after a restart of the kernel'),
      icon: icons.refresh,
      describedBy: NOTHING,
      isEnabled: () => cells.runId !== '',
      execute: () => cells.attach()
    }
  };
}

export function addCommands(desk: Desk, actions: Actions, cells: Cells): void {
  const { commands } = desk.app;
  const options = table(desk, actions, cells);
  Object.entries(options).forEach(([id, option]) => commands.addCommand(id, option));
  const changed = (): void => Object.keys(options).forEach(id => commands.notifyCommandChanged(id));
  let wasRenting = false;
  desk.model.changed.connect(() => {
    const is = desk.model.now.leases.length > 0;
    if (is !== wasRenting) {
      wasRenting = is;
      changed();
    }
  });
}
