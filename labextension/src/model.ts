/**
 * What is rented and owed, as last seen, for all views and the status bar. No page, no requests, no timers: it is fed,
 * and tells that it changed. A lost server changes nothing but `problem`: what was seen stays, with its age.
 */
import { isEnded } from './leases';
import { Signal } from './signal';
import type { LeaseView, Now } from './types';

/** How many looks a sparkline goes back. */
export const TRAIL = 60;

/** The last values of one figure, oldest first; NaN where nothing was known. */
export class Trail {
  private readonly values = new Float32Array(TRAIL).fill(Number.NaN);
  private next = 0;

  push(value: number): void {
    this.values[this.next % TRAIL] = value;
    this.next += 1;
  }

  get list(): readonly number[] {
    const n = Math.min(this.next, TRAIL);
    return Array.from({ length: n }, (_, i) => this.values[(this.next - n + i) % TRAIL] ?? Number.NaN);
  }
}

export interface Use {
  readonly gpu: Trail;
  readonly memory: Trail;
  seenMs: number;
}

const EMPTY: Now = {
  at_ms: 0,
  is_up: false,
  message: '',
  leases: [],
  orphans: [],
  budgets: [],
  rate_nusd_hour: 0,
  spent_today_nusd: 0
};

export class Model {
  /** Told after every change of what is below. */
  readonly changed = new Signal<void>();
  /** Told with the sight before and the new one, for notifications. */
  readonly seen = new Signal<{ readonly before: Now | null; readonly now: Now }>();

  now: Now = EMPTY;
  /** When `now` was received, by this computer's clock; null: never. */
  receivedMs: number | null = null;
  /** Why the last look failed; empty when it did not. */
  problem = '';
  private readonly uses = new Map<string, Use>();

  /** A look has succeeded. */
  take(now: Now, receivedMs: number): void {
    const before = this.receivedMs === null ? null : this.now;
    if (now.is_up) {
      this.now = now;
    } else {
      // The broker is not there: what was rented is still rented, as far as anybody knows.
      this.now = { ...(before ?? now), is_up: false, message: now.message };
    }
    if (now.is_up || before === null) {
      this.receivedMs = receivedMs;
    }
    this.problem = '';
    this.remember(this.now);
    this.seen.emit({ before, now: this.now });
    this.changed.emit();
  }

  /** A look has failed: nobody answered, or not as agreed. */
  miss(problem: string): void {
    this.problem = problem;
    this.changed.emit();
  }

  /** A newer view of one lease came by another way, such as the answer to a release. */
  takeLease(view: LeaseView): void {
    const others = this.now.leases.filter(one => one.lease.lease_id !== view.lease.lease_id);
    const leases = isEnded(view)
      ? others
      : this.now.leases.some(one => one.lease.lease_id === view.lease.lease_id)
        ? this.now.leases.map(one => (one.lease.lease_id === view.lease.lease_id && one.seq <= view.seq ? view : one))
        : [...others, view];
    this.now = { ...this.now, leases };
    this.changed.emit();
  }

  /** The server's clock as it must be now, so that two computers' clocks need not agree. */
  serverMs(localMs: number): number {
    return this.receivedMs === null ? localMs : this.now.at_ms + Math.max(0, localMs - this.receivedMs);
  }

  /** How old what is shown is. */
  ageMs(localMs: number): number | null {
    return this.receivedMs === null ? null : Math.max(0, localMs - this.receivedMs);
  }

  get isRenting(): boolean {
    return this.now.leases.length > 0 || this.now.orphans.some(orphan => orphan.state !== 'gone');
  }

  lease(idOrName: string): LeaseView | undefined {
    const leases = this.now.leases;
    return leases.find(one => one.lease.lease_id === idOrName) ?? leases.find(one => one.lease.name === idOrName);
  }

  use(leaseId: string): Use | undefined {
    return this.uses.get(leaseId);
  }

  private remember(now: Now): void {
    const there = new Set(now.leases.map(view => view.lease.lease_id));
    for (const id of [...this.uses.keys()]) {
      if (!there.has(id)) {
        this.uses.delete(id);
      }
    }
    for (const view of now.leases) {
      const told = view.node?.use;
      const use = this.uses.get(view.lease.lease_id) ?? { gpu: new Trail(), memory: new Trail(), seenMs: 0 };
      if (told && told.at_ms > use.seenMs) {
        use.gpu.push(busiest(view));
        use.memory.push(memoryShare(view));
        use.seenMs = told.at_ms;
        this.uses.set(view.lease.lease_id, use);
      }
    }
  }
}

/** How busy the node is: its GPUs on average, or its processors where it has none. Percent. */
export function busiest(view: LeaseView): number {
  const use = view.node?.use;
  if (!use) {
    return Number.NaN;
  }
  return use.gpus.length === 0 ? use.cpu_percent : use.gpus.reduce((sum, gpu) => sum + gpu.use_percent, 0) / use.gpus.length;
}

/** How full its memory is: that of the GPUs, or the machine's where it has none. Percent. */
export function memoryShare(view: LeaseView): number {
  const [used, total] = memory(view);
  return total > 0 ? (100 * used) / total : Number.NaN;
}

/** Used and whole memory in GiB. */
export function memory(view: LeaseView): readonly [number, number] {
  const use = view.node?.use;
  if (!use) {
    return [Number.NaN, 0];
  }
  return use.gpus.length === 0
    ? [use.memory_used_gib, use.memory_total_gib]
    : use.gpus.reduce<readonly [number, number]>(
        ([used, total], gpu) => [used + gpu.memory_used_gib, total + gpu.memory_total_gib],
        [0, 0]
      );
}
