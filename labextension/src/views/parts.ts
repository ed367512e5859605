/** Small pieces that several views show. Everything that comes from outside stands in text, never in markup. */
import { html, svg } from 'lit';
import type { TemplateResult } from 'lit';

import type { Currency } from '../format';
import { money, percent } from '../format';
import type { Words } from '../words';

/** What every view needs beside its data. */
export interface Manner {
  readonly words: Words;
  readonly currency: Currency;
}

const WIDE = 72;
const HIGH = 18;

/** A line through percentages, oldest first. It says its last value to who cannot see it. */
export function sparkline(values: readonly number[], label: string): TemplateResult {
  const known = values.filter(value => Number.isFinite(value));
  const step = WIDE / Math.max(1, values.length - 1);
  const points = values
    .map((value, i) => [i * step, HIGH - 1 - (Math.min(100, value) / 100) * (HIGH - 2)] as const)
    .filter(([, y]) => Number.isFinite(y))
    .map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`);
  const last = known.at(-1);
  const said = last === undefined ? label : `${label}: ${Math.round(last)} %`;
  return html`<svg class="gm-Spark" viewBox="0 0 ${WIDE} ${HIGH}" role="img" aria-label=${said} preserveAspectRatio="none">
    ${points.length > 1 ? svg`<polyline points=${points.join(' ')} vector-effect="non-scaling-stroke"></polyline>` : ''}
  </svg>`;
}

/** How much of a limit is used, as a bar that is also a meter for screen readers. */
export function budgetBar(spent: bigint, limit: bigint, label: string, manner: Manner): TemplateResult {
  const share = percent(Number(spent), Number(limit));
  const level = share >= 100 ? 'spent' : share >= 80 ? 'warn' : 'ok';
  const said = manner.words.__('%1 of %2', money(spent, manner.currency), money(limit, manner.currency));
  return html`<div class="gm-Bar" data-level=${level}>
    <div
      class="gm-Bar-track"
      role="meter"
      aria-label=${label}
      aria-valuemin="0"
      aria-valuemax="100"
      aria-valuenow=${Math.round(share)}
      aria-valuetext=${said}
    >
      <div class="gm-Bar-fill" style="width: ${share.toFixed(1)}%"></div>
    </div>
    <span class="gm-Bar-text">${said}</span>
  </div>`;
}

export function button(label: string, act: () => void, more: { title?: string; kind?: string; off?: boolean } = {}): TemplateResult {
  return html`<button
    type="button"
    class="gm-Button"
    data-kind=${more.kind ?? ''}
    title=${more.title ?? ''}
    ?disabled=${more.off ?? false}
    @click=${act}
  >
    ${label}
  </button>`;
}

/** What stands where nothing is: what that means, and what to do. */
export function empty(title: string, text: string, act: TemplateResult | '' = ''): TemplateResult {
  return html`<div class="gm-Empty">
    <p class="gm-Empty-title">${title}</p>
    <p>${text}</p>
    ${act}
  </div>`;
}

/** Grey lines while the first answer is on its way. */
export function loading(words: Words): TemplateResult {
  return html`<div class="gm-Loading" role="status" aria-label=${words.__('Loading')}>
    <span></span><span></span><span></span>
  </div>`;
}
