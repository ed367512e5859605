/** Puts the sidebar together: its panel and its three tabs, of which the largest is fetched when it is first seen. */
import type { Desk } from './desk';
import { CostsTab } from './pane-costs';
import { LazyPane } from './pane-lazy';
import { RunningTab } from './pane-running';
import type { Pane } from './panel';
import { Panel } from './panel';
import type { Inside } from './place';
import type { Manner } from './views/parts';

export function sidebar(node: HTMLElement, desk: Desk): Inside {
  const manner = (): Manner => ({ words: desk.words, currency: desk.preferences.currency });
  const offers = async (host: HTMLElement): Promise<Pane> => {
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
  };
  return new Panel(node, {
    model: desk.model,
    words: desk.words,
    panes: {
      offers: host => new LazyPane(host, manner, () => offers(host)),
      running: host => new RunningTab(host, desk, manner),
      costs: host => new CostsTab(host, desk, manner)
    },
    watched: is => desk.live.setWatched(is),
    tab: desk.layout.now.tab,
    tabChosen: tab => desk.layout.keep({ tab })
  });
}
