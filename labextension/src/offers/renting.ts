/**
 * One rental from the question to its node: the form, the wish, its phases, and giving it back at any of them. No DOM;
 * the dialog shows what is here. Money is spent by `submit` alone, which only the dialog's own button calls.
 */
import { ApiError } from '../api';
import { parseUsd, typedUsd } from '../format';
import { PHASES, isEnded } from '../leases';
import type { Defaults, LeaseRequest, LeaseView, OfferQuery, PriceKind } from '../types';
import type { Offer } from './columns';
import { cost } from './job';
import type { OffersSource } from './source';

/** What the form holds, as typed. */
export interface RentForm {
  budget: string;
  hours: string;
  name: string;
  /** Whether another offer of the same model, not dearer, will do when this one is gone. */
  orNext: boolean;
}

/** form: nothing asked yet. asking: sent. lost: sent, no answer, so nobody knows. following: a lease is there. */
export type RentStage = 'form' | 'asking' | 'lost' | 'following';

export interface FormProblem {
  field: 'budget' | 'hours' | 'name';
  problem: 'no amount' | 'too small' | 'no hours' | 'too long' | 'bad name';
}

const LONGEST_HOURS = 24 * 365;
const HOUR_S = 3600;
/** A quote may be so much dearer than the listed price, and is still bought (`LeaseRequest.price_tolerance_ppm`). */
const DEARER = 1.01;
const WAIT_S = 10;
const RETRY_MS = 2000;
const NAME = /^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,59}$/;

export interface RentingParts {
  source: OffersSource;
  offer: Offer;
  defaults: Defaults;
  /** The hours of the user's job, which the form starts with. */
  hours: number;
  newId(): string;
  pause(ms: number): Promise<void>;
  changed(): void;
}

export class Renting {
  stage: RentStage = 'form';
  form: RentForm;
  view: LeaseView | null = null;
  /** What went wrong last, in words; empty: nothing. */
  trouble = '';
  /** Whether giving it back was asked here. */
  isCancelled = false;

  constructor(private readonly parts: RentingParts) {
    this.requestId = parts.newId();
    const usual = parseUsd(parts.defaults.budget) ?? 0;
    const needed = cost(parts.offer.price_nusd_hour, Math.ceil(parts.hours * HOUR_S));
    // A form that would be refused at once helps nobody: where the usual budget buys nothing here, it is what is needed.
    const budget = usual >= this.leastNusd ? usual : upToCents(Math.max(needed, this.leastNusd));
    this.form = {
      budget: typedUsd(budget),
      hours: String(parts.hours),
      name: '',
      orNext: false
    };
  }

  get offer(): Offer {
    return this.parts.offer;
  }

  /** The wish that the form makes, or the first thing that is wrong with it. */
  get wish(): LeaseRequest | FormProblem {
    const budget = parseUsd(this.form.budget);
    const hours = Number(this.form.hours.trim().replace(',', '.') || NaN);
    const name = this.form.name.trim();
    if (budget === null || budget <= 0) {
      return { field: 'budget', problem: 'no amount' };
    }
    if (!(hours > 0)) {
      return { field: 'hours', problem: 'no hours' };
    }
    if (hours > LONGEST_HOURS) {
      return { field: 'hours', problem: 'too long' };
    }
    if (budget < this.leastNusd) {
      return { field: 'budget', problem: 'too small' };
    }
    if (name && !NAME.test(name)) {
      return { field: 'name', problem: 'bad name' };
    }
    return {
      request_id: this.requestId,
      query: this.form.orNext ? likeThis(this.offer) : exactly(this.offer),
      budget_nusd: budget,
      max_s: Math.max(60, Math.round(hours * HOUR_S)),
      name
    };
  }

  /** What the marketplace charges at least for this offer: a budget below buys nothing. */
  get leastNusd(): number {
    const { billing, price_nusd_hour } = this.offer;
    return cost(price_nusd_hour, Math.max(billing.minimum_s, billing.quantum_s, 60)) + billing.fee_nusd;
  }

  /** What it can cost at most with this wish: the budget, or all the hours at the dearest price that is accepted. */
  worstNusd(wish: LeaseRequest): number {
    const dearest = Math.ceil(this.offer.price_nusd_hour * DEARER);
    return Math.min(wish.budget_nusd, cost(dearest, wish.max_s) + this.offer.billing.fee_nusd);
  }

  /** When it ends at the latest, by hours or by money, in seconds from now. */
  endsAfterS(wish: LeaseRequest): number {
    const rate = this.offer.price_nusd_hour;
    return rate > 0 ? Math.min(wish.max_s, Math.floor((wish.budget_nusd / rate) * HOUR_S)) : wish.max_s;
  }

  change(form: Partial<RentForm>): void {
    if (this.stage === 'form') {
      this.form = { ...this.form, ...form };
      this.parts.changed();
    }
  }

  /** Rent, or ask again after an answer was lost: the same request is one lease however often it is sent. */
  async submit(): Promise<void> {
    const wish = this.wish;
    if ('problem' in wish || (this.stage !== 'form' && this.stage !== 'lost')) {
      return;
    }
    this.enter('asking');
    try {
      this.view = await this.parts.source.rent(wish);
    } catch (error) {
      this.trouble = wordsOf(error);
      this.enter(isLost(error) ? 'lost' : 'form');
      return;
    }
    this.enter('following');
    void this.follow();
  }

  /** Give it back, whatever its phase. After a lost answer the wish is made again, so that what came of it is known. */
  async cancel(): Promise<void> {
    this.isCancelled = true;
    this.parts.changed();
    if (this.stage === 'lost') {
      await this.submit();
    }
    const view = this.view;
    if (view !== null && !isEnded(view)) {
      try {
        this.take(await this.parts.source.release(view.lease.lease_id, 'cancelled by the user while renting'));
      } catch (error) {
        this.isCancelled = false;
        this.trouble = wordsOf(error);
      }
      this.parts.changed();
      // Once the node was ready, nobody waited for anything any more.
      void this.follow();
    }
  }

  /** The page is done with it; a lease goes on. */
  dispose(): void {
    this.isDisposed = true;
  }

  /** Whether there is nothing more to wait for. */
  get isDone(): boolean {
    return this.view !== null && (this.view.lease.state === 'ready' || isEnded(this.view));
  }

  private async follow(): Promise<void> {
    if (this.isFollowing) {
      return;
    }
    this.isFollowing = true;
    while (!this.isDisposed && this.view !== null && (!this.isDone || (this.isCancelled && !isEnded(this.view)))) {
      const { lease, seq } = this.view;
      try {
        this.take(await this.parts.source.lease(lease.lease_id, seq, WAIT_S));
        this.trouble = '';
      } catch (error) {
        this.trouble = wordsOf(error);
        this.parts.changed();
        await this.parts.pause(RETRY_MS);
      }
    }
    this.isFollowing = false;
  }

  private take(view: LeaseView): void {
    if (this.view === null || view.seq >= this.view.seq) {
      this.view = view;
    }
    if (this.isCancelled && isEnded(view)) {
      this.trouble = '';
    }
    this.parts.changed();
  }

  private enter(stage: RentStage): void {
    this.stage = stage;
    if (stage === 'asking') {
      this.trouble = '';
    }
    this.parts.changed();
  }

  private readonly requestId: string;
  private isFollowing = false;
  private isDisposed = false;
}

/** One phase of a rental: when it began, how long it took or takes; null: not yet. */
export interface Phase {
  state: (typeof PHASES)[number];
  tookMs: number | null;
  isNow: boolean;
  isPast: boolean;
}

/** The phases from quote to ready, with their times as of `nowMs`. */
export function phasesOf(view: LeaseView, nowMs: number): Phase[] {
  const { phases, state } = view.lease;
  const current = state === 'unconfirmed' ? 'renting' : state === 'wished' ? 'quoting' : state;
  const at = PHASES.indexOf(current);
  return PHASES.map((phase, i) => {
    const began = phases[phase] ?? (phase === 'quoting' ? phases['wished'] : undefined);
    const next = PHASES.slice(i + 1).map(later => phases[later]).find(ms => ms !== undefined && ms >= (began ?? 0));
    const isNow = i === at && phase !== 'ready';
    const isPast = began !== undefined && !isNow && (next !== undefined || phase === 'ready');
    const end = isNow ? nowMs : next;
    const tookMs = began === undefined || end === undefined || phase === 'ready' ? null : Math.max(0, end - began);
    return { state: phase, tookMs, isNow, isPast };
  });
}

/** This very offer, and no dearer kind of it. */
function exactly(offer: Offer): OfferQuery {
  return { marketplaces: [offer.marketplace], offer_id: offer.offer_id, kind: offer.kind as PriceKind };
}

/** Any offer of the same model, memory and count that is not dearer. */
function likeThis(offer: Offer): OfferQuery {
  return {
    gpu: offer.gpu_count === 0 ? 'none' : `${offer.gpu || 'any'}:${Math.floor(offer.vram_gib)}GB:${offer.gpu_count}`,
    max_price_nusd_hour: offer.price_nusd_hour,
    kind: offer.kind as PriceKind
  };
}

function isLost(error: unknown): boolean {
  return !(error instanceof ApiError) || error.isLost || error.status >= 500;
}

function wordsOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** An amount rounded up to whole cents, for a form. */
function upToCents(nusd: number): number {
  return Math.ceil(nusd / 1e7) * 1e7;
}
