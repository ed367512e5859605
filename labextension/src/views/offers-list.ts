/** A plain list of the cheapest offers. The Offers view proper takes its place. */
import { html } from 'lit';
import type { TemplateResult } from 'lit';

import { gib, oneLine, rate } from '../format';
import { gpuWords } from '../leases';
import type { OfferList } from '../types';
import type { Manner } from './parts';
import { empty, loading } from './parts';

export interface OffersListProps extends Manner {
  readonly found: OfferList | null;
  readonly problem: string;
}

export function offersList(props: OffersListProps): TemplateResult {
  const { words, found, problem } = props;
  if (problem !== '') {
    return empty(words.__('The offers could not be read'), problem);
  }
  if (found === null) {
    return loading(words);
  }
  if (found.offers.length === 0) {
    const why = found.statuses.map(status => `${status.marketplace}: ${oneLine(status.message)}`).join('; ');
    return empty(words.__('Nothing is offered now'), why);
  }
  return html`<ul class="gm-List">
    ${found.offers.map(
      offer =>
        html`<li class="gm-Row">
          <span>${gpuWords(offer)} · ${gib(offer.gpu_count > 0 ? offer.vram_gib : offer.memory_gib)}</span>
          <span class="gm-Dim">${oneLine(offer.marketplace, 40)} ${oneLine(offer.region, 40)}</span>
          <span class="gm-Number">${rate(offer.price_nusd_hour, props.currency, words)}</span>
        </li>`
    )}
  </ul>`;
}
