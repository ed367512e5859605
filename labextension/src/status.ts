/** The status bar's one line: how many nodes, what they cost an hour, what was spent today. Pure. */
import type { Currency } from './format';
import { age, money, rate } from './format';
import type { Now } from './types';
import type { Words } from './words';

export interface StatusOf {
  readonly words: Words;
  readonly currency: Currency;
  readonly now: Now;
  readonly ageMs: number | null;
  readonly isLost: boolean;
}

export interface Status {
  readonly level: 'ok' | 'old' | 'bad';
  readonly text: string;
}

/** Null when there is nothing to tell. */
export function status({ now, words, currency, ageMs, isLost }: StatusOf): Status | null {
  const count = now.leases.length;
  const orphans = now.orphans.filter(orphan => orphan.state !== 'gone').length;
  if (ageMs === null || (count === 0 && orphans === 0 && now.spent_today_nusd === 0)) {
    return null;
  }
  const parts = [
    count > 0 ? words._n('%1 GPU node', '%1 GPU nodes', count) : words.__('no GPU node'),
    ...(count > 0 ? [rate(now.rate_nusd_hour, currency, words)] : []),
    words.__('%1 today', money(now.spent_today_nusd, currency)),
    ...(orphans > 0 ? [words._n('%1 orphan', '%1 orphans', orphans)] : []),
    ...(isLost ? [age(ageMs, words)] : [])
  ];
  return { level: orphans > 0 ? 'bad' : isLost ? 'old' : 'ok', text: parts.join(' · ') };
}
