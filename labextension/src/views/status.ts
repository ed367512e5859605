/** The status bar's one line: how many nodes, what they cost an hour, what was spent today. */
import { html, nothing } from 'lit';
import type { TemplateResult } from 'lit';

import { age, money, rate } from '../format';
import type { Now } from '../types';
import type { Manner } from './parts';

export interface StatusProps extends Manner {
  readonly now: Now;
  readonly ageMs: number | null;
  readonly isLost: boolean;
  readonly open: () => void;
}

export function status(props: StatusProps): TemplateResult | typeof nothing {
  const { now, words, currency } = props;
  const count = now.leases.length;
  const orphans = now.orphans.filter(orphan => orphan.state !== 'gone').length;
  if (props.ageMs === null || (count === 0 && orphans === 0 && now.spent_today_nusd === 0)) {
    return nothing;
  }
  const parts = [
    count > 0 ? words._n('%1 GPU node', '%1 GPU nodes', count) : words.__('no GPU node'),
    ...(count > 0 ? [rate(now.rate_nusd_hour, currency, words)] : []),
    words.__('%1 today', money(now.spent_today_nusd, currency)),
    ...(orphans > 0 ? [words._n('%1 orphan', '%1 orphans', orphans)] : []),
    ...(props.isLost ? [age(props.ageMs, words)] : [])
  ];
  const text = parts.join(' · ');
  return html`<button
    type="button"
    class="gm-Status"
    data-level=${orphans > 0 ? 'bad' : props.isLost ? 'old' : 'ok'}
    title=${words.__('Show what is rented')}
    @click=${props.open}
  >
    ${text}
  </button>`;
}
