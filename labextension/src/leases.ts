/** What a lease's state means for people, and what can be done in it. Pure: no page, no clock. */
import { oneLine } from './format';
import type { LeaseState, LeaseView, Offer } from './types';
import type { Words } from './words';

/** good: works; wait: on its way; warn: look at it; bad: money may flow without use; off: it is over. */
export type Mood = 'good' | 'wait' | 'warn' | 'bad' | 'off';

const MOODS: Readonly<Record<LeaseState, Mood>> = {
  wished: 'wait',
  quoting: 'wait',
  renting: 'wait',
  unconfirmed: 'warn',
  booting: 'wait',
  linking: 'wait',
  preparing: 'wait',
  probing: 'wait',
  ready: 'good',
  unreachable: 'warn',
  draining: 'wait',
  releasing: 'wait',
  release_unconfirmed: 'bad',
  released: 'off',
  failed: 'off'
};

/** The order in which a lease comes to life, for a list of phases with their times. */
export const PHASES: readonly LeaseState[] = [
  'quoting',
  'renting',
  'booting',
  'linking',
  'preparing',
  'probing',
  'ready'
];

const ENDED: ReadonlySet<LeaseState> = new Set(['released', 'failed']);
const ENDING: ReadonlySet<LeaseState> = new Set(['draining', 'releasing', 'release_unconfirmed']);
const FREE: ReadonlySet<LeaseState> = new Set(['wished', 'quoting', 'released', 'failed']);

export function mood(view: LeaseView): Mood {
  return MOODS[view.lease.state] ?? 'warn';
}

export function isEnded(view: LeaseView): boolean {
  return ENDED.has(view.lease.state);
}

/** Whether a release was asked for and is not confirmed. */
export function isEnding(view: LeaseView): boolean {
  return ENDING.has(view.lease.state) || (view.lease.goal !== 'node' && !isEnded(view));
}

/** Whether a marketplace may be charging for it now. */
export function mayBill(view: LeaseView): boolean {
  return !FREE.has(view.lease.state);
}

/** The state in words; where money may flow although the node is not usable, it says so. */
export function stateWords(state: LeaseState, words: Words): string {
  switch (state) {
    case 'wished':
      return words.__('asked for, nothing bought yet');
    case 'quoting':
      return words.__('asking for a firm price');
    case 'renting':
      return words.__('buying');
    case 'unconfirmed':
      return words.__('the answer was lost: looking whether it was bought; may bill');
    case 'booting':
      return words.__('the machine starts; may bill');
    case 'linking':
      return words.__('connecting; bills');
    case 'preparing':
      return words.__('setting up; bills');
    case 'probing':
      return words.__('checking that it is what was sold; bills');
    case 'ready':
      return words.__('ready');
    case 'unreachable':
      return words.__('not reachable now; bills');
    case 'draining':
      return words.__('saving results before its end; bills');
    case 'releasing':
      return words.__('release asked, not yet confirmed: may still bill');
    case 'release_unconfirmed':
      return words.__('the marketplace does not confirm the release: may still bill');
    case 'released':
      return words.__('given back, confirmed');
    case 'failed':
      return words.__('failed; nothing is rented');
  }
}

/** `2 × H100`, or `CPU` on a machine without a GPU. A stranger's words, shortened. */
export function gpuWords(offer: Offer | null): string {
  if (offer === null || offer.gpu_count === 0) {
    return 'CPU';
  }
  const name = oneLine(offer.gpu ?? (offer.gpu_raw || 'GPU'), 40);
  return offer.gpu_count === 1 ? name : `${offer.gpu_count} × ${name}`;
}

/** Until when it may run at most, in milliseconds from now; null when that is not known yet. */
export function timeLeftMs(view: LeaseView, nowMs: number): number | null {
  const end = view.lease.deadline_ms;
  return end === null || isEnded(view) ? null : Math.max(0, end - nowMs);
}

/** What it has cost by `nowMs`: the server's figure, counted on by the rate while it bills. */
export function costNow(view: LeaseView, asOfMs: number, nowMs: number): bigint {
  const known = BigInt(view.cost_nusd);
  if (!mayBill(view) || view.lease.billed_from_ms === null || view.lease.billed_to_ms !== null) {
    return known;
  }
  const since = BigInt(Math.max(0, Math.trunc(nowMs - asOfMs)));
  return known + (BigInt(view.lease.price_nusd_hour) * since) / 3_600_000n;
}
