/**
 * Offers as columns: the JSON shape that arrives, and the typed arrays it becomes. No DOM, no fetching.
 *
 * 100,000 offers as objects cost hundreds of megabytes and a second to build; as columns a few megabytes and some
 * milliseconds. Money stays exact: nano-dollars in a `Float64Array` hold every integer below 2^53 (9 million dollars
 * an hour), and what is larger is refused when it enters.
 */
import type { Billing, MarketplaceStatus, NativePrice } from '../types';

export type { Billing };

/** Texts that repeat: row `i` says `names[codes[i]]`. */
export interface Texts {
  names: string[];
  codes: number[];
}

/** What we ourselves have seen of a machine. */
export interface OwnRecord {
  good: number;
  bad: number;
  boot_s: number | null;
  tflops: number | null;
  down_mbps: number | null;
  gap_ppm: number | null;
  last_trouble: string;
}

/** The cheapest hyperscaler price of one GPU model: whose, where, and when it was true. */
export interface Baseline {
  gpu: string;
  cloud: string;
  instance_type: string;
  gpu_nusd_hour: number;
  region: string;
  date: string;
  source: string;
}

/** `POST /gpumarket/offers/columns`, field by field as in `jupyter_gpumarket/api/columns.py`. */
export interface OfferColumns {
  as_of_ms: number;
  marketplace: Texts;
  gpu: Texts;
  gpu_raw: Texts;
  region: Texts;
  country: Texts;
  tier: Texts;
  kind: Texts;
  provider: Texts;
  cpu_model: Texts;
  cuda: Texts;
  offer_id: string[];
  machine_id: string[];
  price_nusd_hour: number[];
  seen_ms: number[];
  gpu_count: number[];
  vram_gib: number[];
  cpu_cores: number[];
  memory_gib: number[];
  disk_gib: number[];
  down_mbps: number[];
  up_mbps: number[];
  reliability: (number | null)[];
  /** The start-up time that prices count, told or assumed. */
  boot_s: (number | null)[];
  /** The cheapest hyperscaler price of as many of the same GPU; null where none has it. */
  baseline_nusd_hour: (number | null)[];
  /** Why an offer cannot be rented (a dated sample, a market without an account); empty: it can. */
  note: Texts;
  billing: { kinds: Billing[]; codes: number[] };
  native: { row: number; price: NativePrice }[];
  own: { row: number; record: OwnRecord }[];
  statuses: MarketplaceStatus[];
  baselines: Baseline[];
}

/** One column of repeating texts. */
export interface TextColumn {
  readonly names: readonly string[];
  readonly codes: Uint32Array;
}

const TEXTS = [
  'marketplace', 'gpu', 'gpu_raw', 'region', 'country', 'tier', 'kind', 'provider', 'cpu_model', 'cuda',
  'note'
] as const;
export type TextName = (typeof TEXTS)[number];

const NUMBERS = [
  'price_nusd_hour', 'seen_ms', 'gpu_count', 'vram_gib', 'cpu_cores', 'memory_gib', 'disk_gib', 'down_mbps', 'up_mbps',
  'reliability', 'boot_s', 'baseline_nusd_hour'
] as const;
export type NumberName = (typeof NUMBERS)[number];

/** All offers. Where a figure is not known it is NaN. */
export interface OfferTable {
  readonly count: number;
  readonly asOfMs: number;
  readonly texts: Readonly<Record<TextName, TextColumn>>;
  readonly numbers: Readonly<Record<NumberName, Float64Array>>;
  readonly offerId: readonly string[];
  readonly machineId: readonly string[];
  readonly billing: { readonly kinds: readonly Billing[]; readonly codes: Uint32Array };
  readonly native: ReadonlyMap<number, NativePrice>;
  readonly own: ReadonlyMap<number, OwnRecord>;
  readonly statuses: readonly MarketplaceStatus[];
  readonly baselines: ReadonlyMap<string, Baseline>;
}

/** The arriving columns as typed arrays; throws where they do not fit together. */
export function tableOf(columns: OfferColumns): OfferTable {
  const count = columns.offer_id.length;
  const texts = {} as Record<TextName, TextColumn>;
  for (const name of TEXTS) {
    const column = columns[name];
    texts[name] = { names: column.names, codes: codesOf(column.codes, column.names.length, count, name) };
  }
  const numbers = {} as Record<NumberName, Float64Array>;
  for (const name of NUMBERS) {
    numbers[name] = numbersOf(columns[name], count, name);
  }
  return {
    count,
    asOfMs: columns.as_of_ms,
    texts,
    numbers,
    offerId: columns.offer_id,
    machineId: columns.machine_id,
    billing: {
      kinds: columns.billing.kinds,
      codes: codesOf(columns.billing.codes, columns.billing.kinds.length, count, 'billing')
    },
    native: new Map(columns.native.map(one => [one.row, one.price])),
    own: new Map(columns.own.map(one => [one.row, one.record])),
    statuses: columns.statuses,
    baselines: new Map(columns.baselines.map(one => [one.gpu, one]))
  };
}

/** No offers at all, as before the first answer. */
export function emptyTable(): OfferTable {
  const none: Texts = { names: [], codes: [] };
  return tableOf({
    as_of_ms: 0, marketplace: none, gpu: none, gpu_raw: none, region: none, country: none, tier: none, kind: none,
    provider: none, cpu_model: none, cuda: none, offer_id: [], machine_id: [], price_nusd_hour: [], seen_ms: [],
    gpu_count: [], vram_gib: [], cpu_cores: [], memory_gib: [], disk_gib: [], down_mbps: [], up_mbps: [],
    reliability: [], boot_s: [], baseline_nusd_hour: [], note: none, billing: { kinds: [], codes: [] }, native: [], own: [],
    statuses: [], baselines: []
  });
}

/** One offer as a plain object, for details and dialogs. */
export interface Offer {
  row: number;
  marketplace: string;
  offer_id: string;
  machine_id: string;
  gpu: string;
  gpu_raw: string;
  region: string;
  country: string;
  tier: string;
  kind: string;
  provider: string;
  cpu_model: string;
  cuda: string;
  note: string;
  price_nusd_hour: number;
  seen_ms: number;
  gpu_count: number;
  vram_gib: number;
  cpu_cores: number;
  memory_gib: number;
  disk_gib: number;
  down_mbps: number;
  up_mbps: number;
  reliability: number | null;
  boot_s: number | null;
  baseline_nusd_hour: number | null;
  billing: Billing;
  native: NativePrice | null;
  own: OwnRecord | null;
}

/** The offer of one row. */
export function offerAt(table: OfferTable, row: number): Offer {
  if (!(row >= 0 && row < table.count)) {
    throw new RangeError(`no offer in row ${row} of ${table.count}`);
  }
  const texts = Object.fromEntries(TEXTS.map(name => [name, textAt(table, name, row)]));
  const numbers = Object.fromEntries(
    NUMBERS.map(name => {
      const value = table.numbers[name][row] ?? NaN;
      return [name, Number.isNaN(value) ? null : value];
    })
  );
  return {
    row,
    offer_id: table.offerId[row],
    machine_id: table.machineId[row],
    ...texts,
    ...numbers,
    billing: billingAt(table, row),
    native: table.native.get(row) ?? null,
    own: table.own.get(row) ?? null
  } as Offer;
}

/** One text of one row. */
export function textAt(table: OfferTable, name: TextName, row: number): string {
  const column = table.texts[name];
  return column.names[column.codes[row] ?? 0] ?? '';
}

/** How one row is billed. */
export function billingAt(table: OfferTable, row: number): Billing {
  const kind = table.billing.kinds[table.billing.codes[row] ?? 0];
  if (kind === undefined) {
    throw new RangeError(`row ${row} has no billing`);
  }
  return kind;
}

/** What is stable about an offer from one list to the next. */
export function keyOf(table: OfferTable, row: number): string {
  return JSON.stringify([textAt(table, 'marketplace', row), table.offerId[row]]);
}

/** The row of a key, or -1. */
export function rowOf(table: OfferTable, key: string): number {
  for (let row = 0; row < table.count; row++) {
    if (keyOf(table, row) === key) {
      return row;
    }
  }
  return -1;
}

function codesOf(codes: number[], names: number, count: number, what: string): Uint32Array {
  checkLength(codes.length, count, what);
  const array = Uint32Array.from(codes);
  if (array.some(code => code >= names)) {
    throw new RangeError(`${what}: a code has no name`);
  }
  return array;
}

function numbersOf(values: (number | null)[], count: number, what: string): Float64Array {
  checkLength(values.length, count, what);
  const array = new Float64Array(count);
  const isMoney = what.includes('_nusd');
  for (let i = 0; i < count; i++) {
    const value = values[i] ?? NaN;
    if (isMoney && !Number.isNaN(value) && !Number.isSafeInteger(value)) {
      throw new RangeError(`${what}: ${value} is no exact amount`);
    }
    array[i] = value;
  }
  return array;
}

function checkLength(length: number, count: number, what: string): void {
  if (length !== count) {
    throw new RangeError(`${what} has ${length} values for ${count} offers`);
  }
}
