/**
 * The one pass over all offers that answers everything at once: which rows are shown, how the others would be
 * distributed behind each slider, and how many offers each chip would bring. A row fails some filters; it counts
 * behind a control when it fails no filter but that control's own.
 */
import type { OfferTable, TextColumn, TextName } from './columns';
import { VRAM_TOLERANCE, meansModel, readWish, type GpuWish } from './grammar';
import { TIERS, type Filters } from './state';

export const PRICE_BINS = 48;
/** Memory sizes that cards really have; a slider stops at these, and its histogram counts between them. */
export const VRAM_STOPS = [0, 4, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128, 141, 180, 192, 288] as const;

const LOWEST = 1e7; // one cent an hour, in nano-dollars
const HIGHEST = 1e11; // a hundred dollars an hour
const DECADES = Math.log10(HIGHEST / LOWEST);

const PRICE = 1;
const VRAM = 2;
const MODEL = 4;
const MARKET = 8;
const OTHER = 16;

/** What one pass found. Arrays are reused by the next pass. */
export interface Found {
  /** Rows that pass everything, in the wanted order: the first `count` entries. */
  rows: Uint32Array;
  count: number;
  priceBins: Uint32Array;
  vramBins: Uint32Array;
  /** Offers by code of the column `gpu`, whatever models are chosen. */
  models: Uint32Array;
  /** Likewise by marketplace. */
  marketplaces: Uint32Array;
  /** How the free text was read. */
  textIs: 'nothing' | 'request' | 'words';
}

/** The lower edge of a price bin, nano-dollars an hour; bin 0 begins at nothing, the last never ends. */
export function priceEdge(bin: number): number {
  if (bin <= 0) {
    return 0;
  }
  const exact = LOWEST * 10 ** ((DECADES * bin) / PRICE_BINS);
  const unit = 10 ** (Math.floor(Math.log10(exact)) - 1);
  return Math.round(exact / unit) * unit;
}

/** What does not change while filters do: each row's bins. Made once for a list. */
export interface Bins {
  price: Uint8Array;
  vram: Uint8Array;
}

/** How many offers there are at all, by code, whatever is filtered. */
export interface Totals {
  count: number;
  models: Uint32Array;
  marketplaces: Uint32Array;
}

/** Each row's place in the two histograms. */
export function binsOf(table: OfferTable): Bins {
  const edges = Float64Array.from({ length: PRICE_BINS }, (_, bin) => priceEdge(bin));
  const price = new Uint8Array(table.count);
  const vram = new Uint8Array(table.count);
  for (let row = 0; row < table.count; row++) {
    price[row] = lastAtMost(edges, table.numbers.price_nusd_hour[row] ?? NaN);
    vram[row] = stopOf(table.numbers.vram_gib[row]!);
  }
  return { price, vram };
}

/** The totals; samples count only where they are wanted, or where there is nothing else. */
export function totalsOf(table: OfferTable, withSamples: boolean): Totals {
  const { gpu, marketplace, note } = table.texts;
  const only = withSamples ? -1 : note.names.indexOf('');
  const models = new Uint32Array(gpu.names.length);
  const marketplaces = new Uint32Array(marketplace.names.length);
  let count = 0;
  for (let row = 0; row < table.count; row++) {
    if (only < 0 || note.codes[row] === only) {
      models[gpu.codes[row]!]!++;
      marketplaces[marketplace.codes[row]!]!++;
      count++;
    }
  }
  return { count, models, marketplaces };
}

/** What a pass goes over, and how: `order` lists all rows, best first. */
export interface Passing {
  table: OfferTable;
  bins: Bins;
  asked: Asked;
  order: Uint32Array;
}

/** The pass; `into` is room for this table, or what an earlier pass of it found. */
export function pass({ table, bins, asked, order }: Passing, filters: Filters, into: Found): Found {
  const { price_nusd_hour: prices, vram_gib: vrams } = table.numbers;
  const gpu = table.texts.gpu.codes;
  const market = table.texts.marketplace.codes;
  const modelOk = chosen(table.texts.gpu, filters.models);
  const marketOk = chosen(table.texts.marketplace, filters.marketplaces);
  const others = otherConditions(table, filters);
  const fits = asked.rows;
  const priceLow = filters.priceLow ?? -1;
  const priceHigh = filters.priceHigh ?? Infinity;
  const vramLow = filters.vramLow === null ? -1 : filters.vramLow * (1 - VRAM_TOLERANCE);
  const vramHigh = filters.vramHigh ?? Infinity;
  into.priceBins.fill(0);
  into.vramBins.fill(0);
  into.models.fill(0);
  into.marketplaces.fill(0);
  let count = 0;
  for (let i = 0; i < table.count; i++) {
    const row = order[i]!;
    const price = prices[row]!;
    const vram = vrams[row]!;
    let fails = 0;
    if (!(price >= priceLow && price <= priceHigh)) fails |= PRICE;
    if (!(vram >= vramLow && vram <= vramHigh)) fails |= VRAM;
    if (modelOk[gpu[row]!] === 0) fails |= MODEL;
    if (marketOk[market[row]!] === 0) fails |= MARKET;
    for (let j = 0; j < others.length; j++) {
      if (others[j]!.ok[others[j]!.codes[row]!] === 0) fails |= OTHER;
    }
    if (fits !== null && fits[row] === 0) fails |= OTHER;
    if ((fails & ~PRICE) === 0) into.priceBins[bins.price[row]!]!++;
    if ((fails & ~VRAM) === 0) into.vramBins[bins.vram[row]!]!++;
    if ((fails & ~MODEL) === 0) into.models[gpu[row]!]!++;
    if ((fails & ~MARKET) === 0) into.marketplaces[market[row]!]!++;
    if (fails === 0) into.rows[count++] = row;
  }
  into.count = count;
  into.textIs = asked.textIs;
  return into;
}

/** Room for what a pass finds in this table. */
export function roomFor(table: OfferTable): Found {
  return {
    rows: new Uint32Array(table.count),
    count: 0,
    priceBins: new Uint32Array(PRICE_BINS),
    vramBins: new Uint32Array(VRAM_STOPS.length),
    models: new Uint32Array(table.texts.gpu.names.length),
    marketplaces: new Uint32Array(table.texts.marketplace.names.length),
    textIs: 'nothing'
  };
}

interface CodeCondition {
  codes: Uint32Array;
  ok: Uint8Array;
}

/** By code: whether it is among the wanted names; nothing wanted is everything. */
function chosen(column: TextColumn, wanted: readonly string[]): Uint8Array {
  return where(column, name => wanted.length === 0 || wanted.includes(name));
}

function otherConditions(table: OfferTable, filters: Filters): CodeCondition[] {
  const { kind, tier } = table.texts;
  const found: CodeCondition[] = [];
  if (filters.kind) {
    found.push({ codes: kind.codes, ok: where(kind, name => name === filters.kind) });
  }
  const { note } = table.texts;
  if (!filters.samples && note.names.length > 1 && note.names.includes('')) {
    found.push({ codes: note.codes, ok: where(note, name => name === '') });
  }
  if (filters.tier) {
    const least = TIERS.findIndex(name => name === filters.tier);
    found.push({ codes: tier.codes, ok: where(tier, name => TIERS.findIndex(one => one === name) >= least) });
  }
  return found;
}

/** What the free text and the region ask of each row; kept by the caller while neither changes. */
export interface Asked {
  textIs: 'nothing' | 'request' | 'words';
  /** 1 for each row that fits; null: all fit. */
  rows: Uint8Array | null;
}

type Holds = (row: number) => boolean;

/** Reads the free text and the region. */
export function askedOf(table: OfferTable, text: string, region: string): Asked {
  const asked = text.trim();
  const request = asked ? requestCondition(table, asked) : null;
  const conditions: Holds[] = [];
  if (request) {
    conditions.push(request);
  } else if (asked) {
    conditions.push(...asked.split(/\s+/).map(word => requestCondition(table, word) ?? wordCondition(table, word)));
  }
  if (region.trim()) {
    conditions.push(anyOf(table, ['region', 'country'], region.trim()));
  }
  const textIs = asked ? (request ? 'request' : 'words') : 'nothing';
  if (conditions.length === 0) {
    return { textIs, rows: null };
  }
  const rows = new Uint8Array(table.count);
  for (let row = 0; row < table.count; row++) {
    rows[row] = conditions.every(holds => holds(row)) ? 1 : 0;
  }
  return { textIs, rows };
}

/** The text as a request such as `H100:80GB:2`; null when it is none, or names no model that is listed. */
function requestCondition(table: OfferTable, text: string): Holds | null {
  const wish = readWish(text);
  const models = wish && modelCondition(table, wish);
  if (!wish || !models) {
    return null;
  }
  const { gpu_count: counts, vram_gib: vrams } = table.numbers;
  if (wish.withoutGpu) {
    return row => counts[row] === 0;
  }
  const { vramLow = -1, vramHigh = Infinity, countLow = 1, countHigh = Infinity } = known(wish);
  return row => {
    const gpus = counts[row]!;
    const vram = vrams[row]!;
    return gpus > 0 && models(row) && vram >= vramLow && vram <= vramHigh && gpus >= countLow && gpus <= countHigh;
  };
}

function known(wish: GpuWish): Partial<Record<'vramLow' | 'vramHigh' | 'countLow' | 'countHigh', number>> {
  return Object.fromEntries(Object.entries(wish).filter(([, value]) => typeof value === 'number'));
}

/** Which models a request means; null when one of its names means none of those listed. */
function modelCondition(table: OfferTable, wish: GpuWish): Holds | null {
  const { gpu, gpu_raw } = table.texts;
  const names = wish.names;
  if (names === null) {
    return () => true;
  }
  const listed = [...gpu.names, ...gpu_raw.names];
  if (!names.every(name => listed.some(model => meansModel(name, model)))) {
    return null;
  }
  const means = (model: string): boolean => names.some(name => meansModel(name, model));
  const byModel = where(gpu, means);
  const bySpelling = where(gpu_raw, means);
  // A marketplace's spelling counts only where the model is unknown: one spelling may stand for several models.
  const unknown = gpu.names.indexOf('');
  return row => {
    const code = gpu.codes[row]!;
    return (code === unknown ? bySpelling[gpu_raw.codes[row]!] : byModel[code]) === 1;
  };
}

/** Shorter words are in too many ids by chance. */
const LEAST_OF_AN_ID = 3;
const WORDS = ['gpu', 'gpu_raw', 'marketplace', 'region', 'country', 'provider', 'cpu_model', 'tier', 'kind'] as const;

function wordCondition(table: OfferTable, word: string): Holds {
  if (WORDS.some(name => containing(table.texts[name], word).includes(1)) || word.length < LEAST_OF_AN_ID) {
    return anyOf(table, WORDS, word);
  }
  const wanted = word.toLowerCase();
  return row =>
    (table.machineId[row] ?? '').toLowerCase().includes(wanted) ||
    (table.offerId[row] ?? '').toLowerCase().includes(wanted);
}

function anyOf(table: OfferTable, names: readonly TextName[], word: string): Holds {
  const columns = names
    .map(name => ({ codes: table.texts[name].codes, ok: containing(table.texts[name], word) }))
    .filter(column => column.ok.includes(1));
  return row => columns.some(column => column.ok[column.codes[row]!] === 1);
}

function containing(column: TextColumn, word: string): Uint8Array {
  const wanted = word.toLowerCase();
  return where(column, name => name.toLowerCase().includes(wanted));
}

function where(column: TextColumn, holds: (name: string) => boolean): Uint8Array {
  return Uint8Array.from(column.names, name => (holds(name) ? 1 : 0));
}

/** The stop of a memory size: the nearest that may mean it (drivers tell less than is sold), else the one below. */
function stopOf(gib: number): number {
  let nearest = 0;
  let least = VRAM_TOLERANCE;
  VRAM_STOPS.forEach((stop, place) => {
    const apart = Math.abs(gib - stop) / stop;
    if (apart <= least) {
      nearest = place;
      least = apart;
    }
  });
  return nearest || lastAtMost(VRAM_STOPS, gib);
}

/** The last place of a rising list that is not above the value; 0 for what is unknown. */
function lastAtMost(rising: ArrayLike<number>, value: number): number {
  let place = 0;
  while (place + 1 < rising.length && rising[place + 1]! <= value) {
    place++;
  }
  return place;
}
