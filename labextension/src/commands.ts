/** Everything that a user can do, as JupyterLab commands. What spends or ends something asks in a dialog of its own. */
import type { TranslationBundle } from '@jupyterlab/translation';
import { LabIcon } from '@jupyterlab/ui-components';
import type { CommandRegistry } from '@lumino/commands';

import type { Begun } from './begin';
import { CARD, CLOCK, COINS, LOG, PLAY_ON_CARD, REFRESH, STOP } from './icons';
import type { TabName } from './layout';
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
  scale: 'gpumarket:scale-cluster',
  adapt: 'gpumarket:adapt-cluster',
  endCluster: 'gpumarket:release-cluster',
  stopMap: 'gpumarket:stop-map',
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
  return typeof value === 'string' || typeof value === 'number' ? String(value) : '';
}

function format(args: Args): ExportFormat {
  const value = args['format'];
  return value === 'parquet' || value === 'html' ? value : 'csv';
}

/** What a command's arguments are, for whoever looks: each `name: description`, all texts unless told otherwise. */
function described(properties: Readonly<Record<string, string>>, more: Readonly<Record<string, object>> = {}) {
  const all = Object.entries(properties).map(([name, description]) => [
    name,
    { type: 'string', description, ...more[name] }
  ]);
  return { args: { type: 'object' as const, properties: Object.fromEntries(all) } };
}

const NOTHING = described({});
const LEASE = described({ lease: 'Id or name of the lease; without it, the only one, or the one that is chosen.' });
const FORMAT = described({ format: 'Of the file.' }, { format: { enum: ['csv', 'parquet', 'html'] } });
const WHICH = 'Name or id of the cluster; without it, the only one, or the one that is chosen.';
const NUMBER = { type: 'integer', minimum: 1, maximum: 1000 };
const CLUSTER = described({ cluster: WHICH });
const SCALE = described({ cluster: WHICH, nodes: 'What the dialog begins with.' }, { nodes: NUMBER });
const ADAPT = described(
  {
    cluster: WHICH,
    minimum: 'At least so many nodes: what the dialog begins with, as all that follows.',
    maximum: 'At most so many nodes.',
    maxPrice: 'Dollars that all nodes together may cost an hour, such as 6.50.',
    finishBy: 'A time of day by when the work should be done, such as 18:30.'
  },
  { minimum: NUMBER, maximum: NUMBER }
);
const MAP = described({ map: 'Id of the map; without it, the only one that runs, or the one that is chosen.' });

type Options = CommandRegistry.ICommandOptions;

/** The commands, before and after there is anything behind them. */
export class Commands {
  /** Set as soon as there is. */
  begun: Begun | null = null;

  constructor(
    private readonly registry: CommandRegistry,
    private readonly words: TranslationBundle,
    private readonly begin: () => Promise<Begun>
  ) {
    Object.entries(this.all()).forEach(([id, options]) => registry.addCommand(id, options));
  }

  /** What can be used may have changed. */
  readonly changed = (): void => Object.values(ids).forEach(id => this.registry.notifyCommandChanged(id));

  private all(): Readonly<Record<string, Options>> {
    return { ...this.views(), ...this.ofLeases(), ...this.ofClusters(), ...this.ofCosts(), ...this.ofCells() };
  }

  private get isRenting(): boolean {
    return (this.begun?.desk.model.now.leases.length ?? 0) > 0;
  }

  private show(tab: TabName): Promise<void> {
    return this.begin().then(({ desk }) => desk.open(tab));
  }

  private views(): Readonly<Record<string, Options>> {
    const { words } = this;
    return {
      [ids.offers]: {
        label: args => (args['isLauncher'] === true ? words.__('Rent a GPU') : words.__('Find and Rent a GPU')),
        caption: words.__('Show what GPUs can be rented now, and their prices'),
        icon: icons.card,
        describedBy: NOTHING,
        execute: () => this.show('offers')
      },
      [ids.running]: {
        label: words.__('Running GPU Nodes'),
        caption: words.__('Show what is rented, what it does and what it costs'),
        icon: icons.clock,
        describedBy: NOTHING,
        execute: () => this.show('running')
      },
      [ids.costs]: {
        label: words.__('GPU Costs and Budgets'),
        caption: words.__('Show what was spent, on what, and the budgets'),
        icon: icons.coins,
        describedBy: NOTHING,
        execute: () => this.show('costs')
      },
      [ids.refresh]: {
        label: words.__('Refresh GPU Nodes'),
        caption: words.__('Look now at what is rented'),
        icon: icons.refresh,
        describedBy: NOTHING,
        execute: () => this.begin().then(({ desk }) => desk.live.look())
      }
    };
  }

  /** A command on one lease, of use while something is rented. */
  private ofLease(label: string, caption: string, icon: LabIcon, act: 'release' | 'extend' | 'openSession' | 'showLog'): Options {
    return {
      label,
      caption,
      icon,
      describedBy: LEASE,
      isEnabled: () => this.isRenting,
      execute: async args => (await (await this.begin()).desk.actions())[act](text(args, 'lease'))
    };
  }

  private ofLeases(): Readonly<Record<string, Options>> {
    const { words } = this;
    return {
      [ids.release]: this.ofLease(
        words.__('Release a GPU Node…'),
        words.__('Give a node back, so that it bills no longer; asks first'),
        icons.stop,
        'release'
      ),
      [ids.releaseAll]: {
        label: words.__('Release All GPU Nodes…'),
        caption: words.__('Give every node back; asks first'),
        icon: icons.stop,
        describedBy: NOTHING,
        isEnabled: () => this.isRenting,
        execute: async () => (await (await this.begin()).desk.actions()).releaseAll()
      },
      [ids.extend]: this.ofLease(
        words.__('Extend a GPU Node…'),
        words.__('Agree to more time or a larger budget for a node; asks how much'),
        icons.clock,
        'extend'
      ),
      [ids.session]: this.ofLease(
        words.__('Open a Session on a GPU Node'),
        words.__('Open the notebook of a node, or a new one that runs there'),
        icons.play,
        'openSession'
      ),
      [ids.log]: this.ofLease(
        words.__('Show the Log of a GPU Node'),
        words.__('Show what set-up and agent logged on a node'),
        icons.log,
        'showLog'
      )
    };
  }

  private ofClusters(): Readonly<Record<string, Options>> {
    const { words } = this;
    const acts = async () => (await this.begin()).desk.clusterActions();
    return {
      [ids.scale]: {
        label: words.__('Scale a GPU Cluster…'),
        caption: words.__('Have another number of nodes; may rent, and asks first'),
        icon: icons.card,
        describedBy: SCALE,
        execute: async args => (await acts()).scale(text(args, 'cluster'), text(args, 'nodes'))
      },
      [ids.adapt]: {
        label: words.__('Adapt a GPU Cluster…'),
        caption: words.__('Let the work decide the number of nodes, between limits in number and price; may rent, and asks first'),
        icon: icons.clock,
        describedBy: ADAPT,
        execute: async args =>
          (await acts()).adapt(text(args, 'cluster'), {
            minimum: text(args, 'minimum'),
            maximum: text(args, 'maximum'),
            price: text(args, 'maxPrice'),
            finish: text(args, 'finishBy')
          })
      },
      [ids.endCluster]: {
        label: words.__('Release a GPU Cluster…'),
        caption: words.__('Give all nodes of a cluster back; asks first'),
        icon: icons.stop,
        describedBy: CLUSTER,
        execute: async args => (await acts()).end(text(args, 'cluster'))
      },
      [ids.stopMap]: {
        label: words.__('Stop a GPU Map…'),
        caption: words.__('End a map that runs; what has ended of it is kept. Asks first'),
        icon: icons.stop,
        describedBy: MAP,
        isEnabled: () => this.isRenting,
        execute: async args => (await acts()).stopMap(text(args, 'map'))
      }
    };
  }

  private ofCosts(): Readonly<Record<string, Options>> {
    const { words } = this;
    return {
      [ids.budget]: {
        label: words.__('Set a GPU Budget…'),
        caption: words.__('Set or take away a limit for a notebook, user or project'),
        icon: icons.coins,
        describedBy: NOTHING,
        execute: async () => (await (await this.begin()).desk.actions()).setBudget(null)
      },
      [ids.exportCosts]: {
        label: args => words.__('Export GPU Costs as %1', format(args).toUpperCase()),
        caption: words.__('Save the costs of the chosen time as a file'),
        icon: icons.coins,
        describedBy: FORMAT,
        execute: async args => (await (await this.begin()).desk.actions()).exportCosts(format(args))
      }
    };
  }

  private ofCells(): Readonly<Record<string, Options>> {
    const { words } = this;
    const hasRun = (): boolean => (this.begun?.cells.runId ?? '') !== '';
    return {
      [ids.runOnGpu]: {
        label: words.__('Run This Cell on a GPU'),
        caption: words.__('Put %1 on the active cell, so that it runs on a rented machine', '%%gpu'),
        icon: icons.play,
        describedBy: NOTHING,
        isEnabled: () => this.begun?.cells.isCode ?? false,
        execute: async () => (await this.begin()).cells.addMagic()
      },
      [ids.cellCost]: {
        label: words.__('Show What This Cell Cost'),
        caption: words.__('Show what the last run of the active cell cost, exactly'),
        icon: icons.coins,
        describedBy: NOTHING,
        isEnabled: hasRun,
        execute: async () => (await this.begin()).cells.showCost()
      },
      [ids.attach]: {
        label: words.__('Show This Cell’s Output Again'),
        caption: words.__('Attach to the last run of the active cell, also after a restart of the kernel'),
        icon: icons.refresh,
        describedBy: NOTHING,
        isEnabled: hasRun,
        execute: async () => (await this.begin()).cells.attach()
      }
    };
  }
}
