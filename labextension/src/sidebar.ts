/** Puts the sidebar together: its panel, its three tabs, and what of it is kept over a reload. */
import type { IStateDB } from '@jupyterlab/statedb';

import type { Actions } from './actions';
import { icons } from './commands';
import { GROUPS, PERIODS } from './costs';
import type { Desk } from './desk';
import { CostsTab } from './pane-costs';
import type { Kept } from './pane-costs';
import { LazyPane } from './pane-lazy';
import { RunningTab } from './pane-running';
import type { Pane, TabName } from './panel';
import { Panel, TABS } from './panel';
import type { Manner } from './views/parts';

const STATE = 'jupyter-gpumarket:sidebar';

/** What is shown where; kept in JupyterLab's workspace. */
interface Layout extends Kept {
  readonly tab: TabName;
}

const USUAL: Layout = { tab: 'offers', period: 'today', by: 'notebook' };

function layout(value: unknown): Layout {
  const given = typeof value === 'object' && value !== null ? (value as Readonly<Record<string, unknown>>) : {};
  return {
    tab: TABS.find(one => one === given['tab']) ?? USUAL.tab,
    period: PERIODS.find(one => one === given['period']) ?? USUAL.period,
    by: GROUPS.find(one => one === given['by']) ?? USUAL.by
  };
}

export interface Sidebar {
  readonly panel: Panel;
  readonly costs: CostsTab;
}

export function newSidebar(desk: Desk, actions: Actions, state: IStateDB | null): Sidebar {
  let kept = USUAL;
  const keep = (more: Partial<Layout>): void => {
    kept = { ...kept, ...more };
    void state?.save(STATE, { ...kept });
  };
  const manner = (): Manner => ({ words: desk.words, currency: desk.preferences.currency });
  let costs: CostsTab | undefined;
  const panes = {
    offers: (host: HTMLElement): Pane =>
      new LazyPane(host, manner, async () => {
        const { OffersTab } = await import('./offers-tab');
        return new OffersTab(host, {
          api: desk.api,
          manner,
          preferences: () => desk.preferences,
          rented: view => {
            desk.model.takeLease(view);
            desk.live.soon();
          }
        });
      }),
    running: (host: HTMLElement): Pane =>
      new RunningTab(host, desk.model, manner, {
        rent: () => desk.open('offers'),
        session: lease => void actions.openSession(lease),
        log: lease => void actions.showLog(lease),
        extend: lease => void actions.extend(lease),
        release: lease => void actions.release(lease),
        releaseAll: () => void actions.releaseAll()
      }),
    costs: (host: HTMLElement): Pane => {
      costs = new CostsTab(host, desk.api, desk.model, manner, kept, keep, {
        exportAs: format => void actions.exportCosts(format, desk.costSpan()),
        setBudget: view => void actions.setBudget(view)
      });
      return costs;
    }
  };
  const panel = new Panel({
    model: desk.model,
    words: () => desk.words,
    panes,
    watched: is => desk.live.setWatched(is),
    tab: kept.tab,
    tabChosen: tab => keep({ tab })
  });
  panel.title.icon = icons.card;
  panel.title.caption = desk.words.__('GPU market');
  if (costs === undefined) {
    throw new Error('the panel makes every tab');
  }
  const made = costs;
  void state?.fetch(STATE).then(value => {
    const before = layout(value);
    kept = before;
    made.restore(before);
    panel.choose(before.tab);
  });
  return { panel, costs };
}
