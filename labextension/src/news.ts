/** What between two looks is worth a notification, and what can be done about it. Pure: it decides, others show. */
import { money, oneLine } from './format';
import type { Currency } from './format';
import { isEnding, mayBill } from './leases';
import type { LeaseView, Now } from './types';
import type { Words } from './words';

export type Deed = 'extend' | 'release' | 'running' | 'costs';

export interface Item {
  /** The same for the same matter, so that it is told once. */
  readonly key: string;
  readonly level: 'info' | 'warning' | 'error';
  readonly text: string;
  readonly lease: string;
  readonly deeds: readonly Deed[];
}

export interface Telling {
  readonly words: Words;
  readonly currency: Currency;
  readonly idleMs: number;
  /** Since when each node has been without a running cell, by the server's clock; kept by `Teller`. */
  readonly idleSince: ReadonlyMap<string, number>;
}

const AROUND: readonly Deed[] = ['extend', 'release'];

/** Everything that is so now and that somebody should know of. */
export function items(before: Now | null, now: Now, telling: Telling): readonly Item[] {
  return [
    ...now.leases.flatMap(view => [...ofBudget(view, telling), ...ofIdle(view, now, telling), ...ofLink(view, before, telling)]),
    ...lost(before, now, telling),
    ...scopes(now, telling),
    ...orphans(now, telling)
  ];
}

function name(view: LeaseView): string {
  return oneLine(view.lease.name, 40) || view.lease.lease_id;
}

function ofBudget(view: LeaseView, { words, currency }: Telling): readonly Item[] {
  const limit = view.lease.request.budget_nusd;
  const share = limit > 0 ? (100 * view.cost_nusd) / limit : 0;
  if (share < 80 || isEnding(view)) {
    return [];
  }
  const [spent, whole] = [money(view.cost_nusd, currency), money(limit, currency)];
  const isSpent = share >= 100;
  const text = isSpent
    ? words.__('%1 has used up its budget: %2 of %3. It is given back.', name(view), spent, whole)
    : words.__('%1 has used 80 % of its budget: %2 of %3.', name(view), spent, whole);
  const level = isSpent ? 'error' : 'warning';
  return [{ key: `budget:${view.lease.lease_id}:${level}:${limit}`, level, text, lease: view.lease.lease_id, deeds: AROUND }];
}

function ofIdle(view: LeaseView, now: Now, { words, currency, idleMs, idleSince }: Telling): readonly Item[] {
  const since = idleSince.get(view.lease.lease_id);
  if (since === undefined || now.at_ms - since < idleMs || !mayBill(view) || isEnding(view)) {
    return [];
  }
  const minutes = Math.floor(idleMs / 60_000);
  const hourly = money(view.lease.price_nusd_hour, currency);
  const text = words.__('%1 has run no cell for %2 minutes and costs %3 an hour.', name(view), minutes, hourly);
  const key = `idle:${view.lease.lease_id}:${since}`;
  return [{ key, level: 'warning', text, lease: view.lease.lease_id, deeds: ['release', 'running'] }];
}

function ofLink(view: LeaseView, before: Now | null, { words }: Telling): readonly Item[] {
  const old = before?.leases.find(one => one.lease.lease_id === view.lease.lease_id);
  if (view.lease.state !== 'unreachable' || (old !== undefined && old.lease.state === 'unreachable')) {
    return [];
  }
  const text = words.__('%1 is not reachable now. Its cells go on; nothing is lost yet.', name(view));
  const key = `link:${view.lease.lease_id}:${view.lease.changed_ms}`;
  return [{ key, level: 'warning', text, lease: view.lease.lease_id, deeds: ['running', 'release'] }];
}

/** Leases that were of use and are gone although nobody asked for their end: preempted, or their time is over. */
function lost(before: Now | null, now: Now, { words }: Telling): readonly Item[] {
  const there = new Set(now.leases.map(view => view.lease.lease_id));
  return (before?.leases ?? [])
    .filter(view => !there.has(view.lease.lease_id) && view.lease.ready_ms !== null && view.lease.goal === 'node' && !isEnding(view))
    .map(view => ({
      key: `lost:${view.lease.lease_id}`,
      level: 'error' as const,
      text: words.__('%1 has ended, with the variables on it.', name(view)),
      lease: view.lease.lease_id,
      deeds: ['costs' as const]
    }));
}

function scopes(now: Now, { words, currency }: Telling): readonly Item[] {
  return now.budgets.flatMap(view => {
    const { scope, key, limit_nusd } = view.budget;
    const share = limit_nusd > 0 ? (100 * view.spent_nusd) / limit_nusd : 0;
    if (share < 80) {
      return [];
    }
    const level = share >= 100 ? 'error' : 'warning';
    const text = words.__(
      'Budget of %1 %2: %3 of %4 are spent.',
      scope,
      oneLine(key, 60),
      money(view.spent_nusd, currency),
      money(limit_nusd, currency)
    );
    return [{ key: `scope:${scope}:${key}:${level}:${limit_nusd}`, level, text, lease: '', deeds: ['costs' as const] }];
  });
}

function orphans(now: Now, { words }: Telling): readonly Item[] {
  return now.orphans
    .filter(orphan => orphan.state !== 'gone')
    .map(orphan => ({
      key: `orphan:${orphan.marketplace}:${orphan.rental_id}`,
      level: 'error' as const,
      text: words.__(
        'A rental at %1 that no lease knows was found (%2). It bills until it is given back.',
        oneLine(orphan.marketplace, 40),
        oneLine(orphan.rental_id, 40)
      ),
      lease: '',
      deeds: ['running' as const]
    }));
}

/** Remembers what was told, and since when nodes are idle. */
export class Teller {
  private readonly told = new Set<string>();
  private readonly idleSince = new Map<string, number>();

  /** What is new at this look. */
  news(before: Now | null, now: Now, how: Omit<Telling, 'idleSince'>): readonly Item[] {
    this.noteIdle(now);
    const fresh = items(before, now, { ...how, idleSince: this.idleSince }).filter(item => !this.told.has(item.key));
    fresh.forEach(item => this.told.add(item.key));
    return fresh;
  }

  private noteIdle(now: Now): void {
    const there = new Set(now.leases.map(view => view.lease.lease_id));
    for (const id of [...this.idleSince.keys()]) {
      if (!there.has(id)) {
        this.idleSince.delete(id);
      }
    }
    for (const view of now.leases) {
      const id = view.lease.lease_id;
      const isIdle = view.lease.state === 'ready' && view.node !== null && view.node.running.length === 0;
      if (!isIdle) {
        this.idleSince.delete(id);
      } else if (!this.idleSince.has(id)) {
        this.idleSince.set(id, now.at_ms);
      }
    }
  }
}
