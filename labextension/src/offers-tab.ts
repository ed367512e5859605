/** The sidebar's Offers tab: the Offers view over the server's routes, its filters kept in the browser. */
import type { Api } from './api';
import { parseUsd } from './format';
import type { Keeping, OffersSource } from './offers/source';
import type { Pane } from './panel';
import type { Preferences } from './settings';
import type { LeaseView } from './types';
import { OffersPane } from './views/offers-pane';
import type { Manner } from './views/parts';

/** The most that the broker gives at once; more than all marketplaces list together. */
const MOST_OFFERS = 100_000;

const KEPT = 'jupyter-gpumarket:offers';

/** What the Offers tab needs of the plugin. */
export interface OffersNeeds {
  readonly api: Api;
  readonly manner: () => Manner;
  readonly preferences: () => Preferences;
  /** A lease was asked for, or came further. */
  readonly rented: (view: LeaseView) => void;
}

/** The Offers view over the server's routes. */
export class OffersTab extends OffersPane implements Pane {
  private isFirst: boolean;

  constructor(
    host: HTMLElement,
    private readonly needs: OffersNeeds
  ) {
    const keeping = keptInBrowser(KEPT);
    super(host, sourceOf(needs), keeping, needs.manner);
    this.isFirst = keeping.state === null;
  }

  /** Who has never set a filter begins with those of JupyterLab's settings, which are read by now. */
  override setVisible(visible: boolean): void {
    if (visible && this.isFirst) {
      this.isFirst = false;
      const { maxPrice, vramGib } = this.needs.preferences();
      this.model.filter({ priceHigh: parseUsd(maxPrice) || null, vramLow: vramGib || null });
    }
    super.setVisible(visible);
  }
}

/** A state in the browser's own storage, where that is allowed; without it, filters last as long as the page. */
function keptInBrowser(name: string): Keeping {
  let state: unknown = null;
  try {
    state = JSON.parse(localStorage.getItem(name) ?? 'null');
  } catch {
    // Storage is forbidden, or what is there is not ours.
  }
  return {
    state,
    save: changed => {
      try {
        localStorage.setItem(name, JSON.stringify(changed));
      } catch {
        // Likewise.
      }
    }
  };
}

function sourceOf({ api, preferences, rented }: OffersNeeds): OffersSource {
  const told = async (asked: Promise<LeaseView>): Promise<LeaseView> => {
    const view = await asked;
    rented(view);
    return view;
  };
  return {
    columns: refresh => api.offerColumns({ refresh, limit: MOST_OFFERS, samples: 'auto' }),
    defaults: async () => {
      const usual = await api.defaults();
      const mine = preferences();
      return { ...usual, budget: mine.budget || usual.budget, hours: mine.hours || usual.hours };
    },
    rent: wish => told(api.rent(wish)),
    lease: (id, afterSeq, waitS) => told(api.lease(id, afterSeq, waitS)),
    release: (id, reason) => told(api.release(id, reason))
  };
}
