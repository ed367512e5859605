/**
 * Keeps the model fresh: looks often while somebody watches and something is rented, seldom otherwise, and at once when
 * the server tells of a change. Knows no page: clock, timers and visibility are given.
 */
import type { Api } from './api';
import { ApiError } from './api';
import type { Model } from './model';

export interface Surroundings {
  nowMs(): number;
  /** Calls back once after so many milliseconds; the result cancels. */
  later(ms: number, act: () => void): () => void;
  isHidden(): boolean;
}

const EVENT_PREFIX = 'https://events.jupyter.org/jupyter_gpumarket/';
const SOON_MS = 150;
const LONGEST_MS = 60_000;
const HIDDEN_MS = 60_000;
/** Without a view and without a lease, only a cell that was run or a notice on the bus makes a look worth while. */
const QUIET_MS = 300_000;

/** How long until the next look. Pure, so that it can be read and tested as a table. */
export function pauseMs(at: {
  refreshMs: number;
  failures: number;
  isHidden: boolean;
  isWatched: boolean;
  isRenting: boolean;
}): number {
  const wanted = at.isWatched || at.isRenting ? at.refreshMs : QUIET_MS;
  const backOff = at.failures === 0 ? 0 : Math.min(LONGEST_MS, at.refreshMs * 2 ** Math.min(at.failures, 10));
  return Math.max(at.failures === 0 ? wanted : backOff, at.isHidden ? HIDDEN_MS : 0);
}

export class Live {
  private failures = 0;
  private watched = false;
  private cancel: () => void = () => undefined;
  private looking: Promise<void> | null = null;
  private again = false;
  private isDisposed = false;

  constructor(
    private readonly api: Api,
    private readonly model: Model,
    private readonly around: Surroundings,
    private refreshMs = 3000
  ) {}

  start(): void {
    void this.look();
  }

  dispose(): void {
    this.isDisposed = true;
    this.cancel();
  }

  setRefresh(ms: number): void {
    this.refreshMs = Math.max(1000, ms);
    this.plan();
  }

  /** Whether a view is open: only then is a broker started that does not run. */
  setWatched(watched: boolean): void {
    const begins = watched && !this.watched;
    this.watched = watched;
    if (begins) {
      this.soon();
    }
  }

  /** A message of the event bus, whatever it is. A hint only: anybody who may write to the bus can send one. */
  notice(event: { readonly schema_id?: unknown }): void {
    if (typeof event.schema_id === 'string' && event.schema_id.startsWith(EVENT_PREFIX)) {
      this.soon();
    }
  }

  /** The page is seen again, or something was done: look within a moment, once for many calls. */
  soon(): void {
    this.schedule(SOON_MS);
  }

  /** Look now. */
  async look(): Promise<void> {
    if (this.looking !== null) {
      this.again = true;
      return this.looking;
    }
    this.cancel();
    this.looking = this.once();
    await this.looking;
    this.looking = null;
    if (this.again) {
      this.again = false;
      this.soon();
    } else {
      this.plan();
    }
  }

  private async once(): Promise<void> {
    try {
      const now = await this.api.now(this.watched);
      this.failures = now.is_up || !(this.watched || this.model.isRenting) ? 0 : this.failures + 1;
      this.model.take(now, this.around.nowMs());
    } catch (error) {
      this.failures += 1;
      this.model.miss(error instanceof ApiError ? error.message : String(error));
    }
  }

  private plan(): void {
    this.schedule(
      pauseMs({
        refreshMs: this.refreshMs,
        failures: this.failures,
        isHidden: this.around.isHidden(),
        isWatched: this.watched,
        isRenting: this.model.isRenting
      })
    );
  }

  private schedule(ms: number): void {
    this.cancel();
    if (!this.isDisposed) {
      this.cancel = this.around.later(ms, () => void this.look());
    }
  }
}
