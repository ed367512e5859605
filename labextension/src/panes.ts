/** What the tabs hold: each fetches through the API what it alone needs, and draws its view. */
import { render } from 'lit';

import type { Api } from './api';
import { ApiError } from './api';
import type { Pane } from './panel';
import type { OfferList } from './types';
import { offersList } from './views/offers-list';
import type { Manner } from './views/parts';

export class OffersTab implements Pane {
  private found: OfferList | null = null;
  private problem = '';

  constructor(
    private readonly host: HTMLElement,
    private readonly api: Api,
    private readonly manner: () => Manner
  ) {}

  draw(): void {
    render(offersList({ ...this.manner(), found: this.found, problem: this.problem }), this.host);
  }

  setVisible(visible: boolean): void {
    if (visible) {
      void this.load();
    }
  }

  dispose(): void {
    render('', this.host);
  }

  private async load(): Promise<void> {
    try {
      this.found = await this.api.offers({ limit: 200 });
      this.problem = '';
    } catch (error) {
      this.problem = error instanceof ApiError ? error.message : String(error);
    }
    this.draw();
  }
}
