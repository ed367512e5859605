/** Lines of the ledger, summed for a span: by whom, for what, and over time. Pure; amounts are BigInt, days are UTC. */
import type { By, Period } from './layout';
import type { Charge } from './types';

export const HOUR_MS = 3_600_000;
export const DAY_MS = 24 * HOUR_MS;

export interface Span {
  readonly sinceMs: number;
  readonly untilMs: number;
  /** How long one bar of the chart is. */
  readonly stepMs: number;
}

/** The sums of some lines. `work` is what cells used; `other` storage, traffic, fees and the like. */
export interface Sum {
  readonly key: string;
  readonly amount: bigint;
  readonly work: bigint;
  readonly boot: bigint;
  readonly idle: bigint;
  readonly other: bigint;
}

/** Today, seven days or thirty days up to now, whole UTC days. */
export function span(period: Period, nowMs: number): Span {
  const today = Math.floor(nowMs / DAY_MS) * DAY_MS;
  const days = { today: 1, week: 7, month: 30 }[period];
  return {
    sinceMs: today - (days - 1) * DAY_MS,
    untilMs: today + DAY_MS,
    stepMs: period === 'today' ? HOUR_MS : DAY_MS
  };
}

/** The part of a line that falls before a moment; what is left of it falls after, to the nano-dollar. */
function before(charge: Charge, ms: number): bigint {
  const length = charge.end_ms - charge.start_ms;
  if (ms >= charge.end_ms && (length > 0 || ms > charge.start_ms)) {
    return BigInt(charge.amount_nusd);
  }
  if (ms <= charge.start_ms) {
    return 0n;
  }
  return (BigInt(charge.amount_nusd) * BigInt(ms - charge.start_ms)) / BigInt(length);
}

/** The part of a line in a span. Spans side by side add up to the whole line. */
export function part(charge: Charge, fromMs: number, toMs: number): bigint {
  return before(charge, toMs) - before(charge, fromMs);
}

class Summing {
  amount = 0n;
  work = 0n;
  boot = 0n;
  idle = 0n;
  other = 0n;

  constructor(readonly key: string) {}

  add(kind: Charge['kind'], amount: bigint): void {
    this.amount += amount;
    if (kind === 'cell') {
      this.work += amount;
    } else if (kind === 'boot' || kind === 'failed_attempt') {
      this.boot += amount;
    } else if (kind === 'idle') {
      this.idle += amount;
    } else {
      this.other += amount;
    }
  }
}

/** The key of a line for one way of grouping; empty where nothing is told. */
export function keyOf(charge: Charge, by: By): string {
  switch (by) {
    case 'notebook':
      return charge.owner.notebook;
    case 'user':
      return charge.owner.user;
    case 'project':
      return charge.owner.project;
    case 'marketplace':
      return charge.marketplace;
    case 'gpu':
      return charge.gpu;
  }
}

/** Sums by key, dearest first. */
export function sums(charges: readonly Charge[], by: By, at: Span): readonly Sum[] {
  const found = new Map<string, Summing>();
  for (const charge of charges) {
    const amount = part(charge, at.sinceMs, at.untilMs);
    if (amount !== 0n) {
      const key = keyOf(charge, by);
      const sum = found.get(key) ?? new Summing(key);
      sum.add(charge.kind, amount);
      found.set(key, sum);
    }
  }
  return [...found.values()].sort((a, b) => (a.amount === b.amount ? (a.key < b.key ? -1 : 1) : a.amount < b.amount ? 1 : -1));
}

/** One sum of everything. */
export function total(charges: readonly Charge[], at: Span): Sum {
  const all = new Summing('');
  charges.forEach(charge => all.add(charge.kind, part(charge, at.sinceMs, at.untilMs)));
  return all;
}

/** One sum for each step of the span; its key is where the step begins, in milliseconds. */
export function steps(charges: readonly Charge[], at: Span): readonly Sum[] {
  const count = Math.round((at.untilMs - at.sinceMs) / at.stepMs);
  const bars = Array.from({ length: count }, (_, i) => new Summing(String(at.sinceMs + i * at.stepMs)));
  for (const charge of charges) {
    const first = Math.max(0, Math.floor((charge.start_ms - at.sinceMs) / at.stepMs));
    const last = Math.min(count - 1, Math.floor((charge.end_ms - at.sinceMs) / at.stepMs));
    for (let i = first; i <= last; i += 1) {
      const from = at.sinceMs + i * at.stepMs;
      bars[i]?.add(charge.kind, part(charge, from, from + at.stepMs));
    }
  }
  return bars;
}
