/**
 * What a user has asked to see: filters, order, grouping, the job. Plain JSON, so that it is kept between sessions and
 * goes through a widget's traits; what comes from there is read with `stateFrom`, which believes nothing.
 */
import type { Job } from './job';

export const TIERS = ['community', 'verified', 'datacenter', 'tee', 'own'] as const;
export const SORTS = ['price', 'price_per_gpu', 'price_per_vram', 'total', 'saving', 'vram', 'reliability', 'age'] as const;
export type Sort = (typeof SORTS)[number];
export type Kind = '' | 'on_demand' | 'spot';

/** Filters. Empty and null: no limit. Prices in nano-dollars an hour for the whole offer, memory in GiB a GPU. */
export interface Filters {
  text: string;
  priceLow: number | null;
  priceHigh: number | null;
  vramLow: number | null;
  vramHigh: number | null;
  models: readonly string[];
  marketplaces: readonly string[];
  region: string;
  /** The weakest tier that is taken. */
  tier: string;
  kind: Kind;
  /** Whether what cannot be rented is shown beside what can. */
  samples: boolean;
}

export interface OffersState {
  filters: Filters;
  sort: Sort;
  descending: boolean;
  grouped: boolean;
  /** Models whose group is open. */
  open: readonly string[];
  job: Job;
}

export const NO_FILTERS: Filters = {
  text: '', priceLow: null, priceHigh: null, vramLow: null, vramHigh: null, models: [], marketplaces: [], region: '',
  tier: '', kind: '', samples: false
};

export const FIRST_STATE: OffersState = {
  filters: NO_FILTERS,
  sort: 'price',
  descending: false,
  grouped: false,
  open: [],
  job: { hours: 1, inGib: 0, outGib: 0 }
};

const MAX_TEXT = 200;
const MAX_NAMES = 200;
const MAX_HOURS = 24 * 365;
const MAX_GIB = 1e6;

/** The state that some kept or foreign value describes; whatever does not fit is as at first. */
export function stateFrom(value: unknown): OffersState {
  const given = record(value);
  const job = record(given['job']);
  return {
    filters: filtersFrom(given['filters']),
    sort: oneOf(given['sort'], SORTS, FIRST_STATE.sort),
    descending: given['descending'] === true,
    grouped: given['grouped'] === true,
    open: names(given['open']),
    job: {
      hours: number(job['hours'], 1 / 60, MAX_HOURS) ?? FIRST_STATE.job.hours,
      inGib: number(job['inGib'], 0, MAX_GIB) ?? 0,
      outGib: number(job['outGib'], 0, MAX_GIB) ?? 0
    }
  };
}

/** Filters likewise. */
export function filtersFrom(value: unknown): Filters {
  const given = record(value);
  return {
    text: text(given['text']),
    priceLow: number(given['priceLow'], 0, Number.MAX_SAFE_INTEGER),
    priceHigh: number(given['priceHigh'], 0, Number.MAX_SAFE_INTEGER),
    vramLow: number(given['vramLow'], 0, 1e5),
    vramHigh: number(given['vramHigh'], 0, 1e5),
    models: names(given['models']),
    marketplaces: names(given['marketplaces']),
    region: text(given['region']),
    tier: oneOf(given['tier'], ['', ...TIERS], ''),
    kind: oneOf(given['kind'], ['', 'on_demand', 'spot'] as const, ''),
    samples: given['samples'] === true
  };
}

/** Whether two states ask for the same; both come from here, so the order of their keys is the same. */
export function sameState(one: unknown, other: unknown): boolean {
  return JSON.stringify(one) === JSON.stringify(other);
}

function record(value: unknown): Record<string, unknown> {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
}

function text(value: unknown): string {
  return typeof value === 'string' ? value.slice(0, MAX_TEXT) : '';
}

function names(value: unknown): string[] {
  return Array.isArray(value)
    ? [...new Set(value.filter((one): one is string => typeof one === 'string'))].slice(0, MAX_NAMES)
    : [];
}

function number(value: unknown, low: number, high: number): number | null {
  return typeof value === 'number' && value >= low && value <= high ? value : null;
}

function oneOf<T extends string>(value: unknown, known: readonly T[], otherwise: T): T {
  return known.find(one => one === value) ?? otherwise;
}
