/** The order of offers: one key per row, best first; ties stay as the broker sent them. Also groups by model. */
import type { OfferTable } from './columns';
import { jobPrice } from './job';
import type { OffersState, Sort } from './state';

/** All rows, best first by the state's order. What has no key (an unknown figure) comes last either way. */
export function orderOf(table: OfferTable, state: OffersState): Uint32Array {
  const keys = keysOf(table, state);
  const sign = state.descending ? -1 : 1;
  const known: number[] = [];
  const unknown: number[] = [];
  for (let row = 0; row < table.count; row++) {
    (Number.isNaN(keys[row]!) ? unknown : known).push(row);
  }
  // Lists mostly arrive sorted by price, which this sort notices: it then takes one pass.
  known.sort((one, other) => sign * (keys[one]! - keys[other]!) || one - other);
  return Uint32Array.from([...known, ...unknown]);
}

/** Whether a state is ordered otherwise than another, for the same table. */
export function ordersOtherwise(one: OffersState, other: OffersState): boolean {
  const jobs = one.sort === 'total' && JSON.stringify(one.job) !== JSON.stringify(other.job);
  return one.sort !== other.sort || one.descending !== other.descending || jobs;
}

/** The share that is saved against hyperscalers' list price, 0 to 1; negative where it is dearer, NaN if not known. */
export function savingAt(table: OfferTable, row: number): number {
  const baseline = table.numbers.baseline_nusd_hour[row] ?? NaN;
  const price = table.numbers.price_nusd_hour[row] ?? NaN;
  return baseline > 0 ? 1 - price / baseline : NaN;
}

function keysOf(table: OfferTable, state: OffersState): Float64Array {
  const key = KEYS[state.sort];
  return Float64Array.from({ length: table.count }, (_, row) => key(table, row, state));
}

/** Smaller is better. Keys only order; no amount is taken from one. */
const KEYS: Record<Sort, (table: OfferTable, row: number, state: OffersState) => number> = {
  price: (table, row) => table.numbers.price_nusd_hour[row]!,
  price_per_gpu: (table, row) => table.numbers.price_nusd_hour[row]! / Math.max(1, table.numbers.gpu_count[row]!),
  price_per_vram: (table, row) => {
    const vram = table.numbers.vram_gib[row]! * Math.max(1, table.numbers.gpu_count[row]!);
    return vram > 0 ? table.numbers.price_nusd_hour[row]! / vram : NaN;
  },
  total: (table, row, state) => jobPrice(table, row, state.job),
  saving: (table, row) => -savingAt(table, row),
  vram: (table, row) => -table.numbers.vram_gib[row]!,
  reliability: (table, row) => -table.numbers.reliability[row]!,
  age: (table, row) => -table.numbers.seen_ms[row]!
};

/** A group of offers: one model. */
export interface Group {
  /** The model's name, or a marketplace's spelling of an unknown one; empty: no GPU. */
  name: string;
  count: number;
  cheapest: number;
  isOpen: boolean;
}

/** What the list shows, line by line: a row of the table, or a group's header. */
export interface Lines {
  count: number;
  /** A row of the table, or -1 - g for the header of group g. */
  at: Int32Array;
  groups: Group[];
}

/** The rows as they are, no groups. */
export function plainLines(rows: Uint32Array, count: number): Lines {
  return { count, at: Int32Array.from(rows.subarray(0, count)), groups: [] };
}

/** The rows by model: groups come in the order of their best offer; closed ones show their header only. */
export function groupedLines(table: OfferTable, rows: Uint32Array, count: number, open: readonly string[]): Lines {
  const { gpu, gpu_raw } = table.texts;
  const unknown = gpu.names.indexOf('');
  const byName = new Map<string, number[]>();
  for (let i = 0; i < count; i++) {
    const row = rows[i]!;
    const code = gpu.codes[row]!;
    const name = (code === unknown ? gpu_raw.names[gpu_raw.codes[row]!] : gpu.names[code]) ?? '';
    const members = byName.get(name);
    if (members) {
      members.push(row);
    } else {
      byName.set(name, [row]);
    }
  }
  const at: number[] = [];
  const groups: Group[] = [];
  for (const [name, members] of byName) {
    const isOpen = open.includes(name);
    const cheapest = members.reduce((least, row) => Math.min(least, table.numbers.price_nusd_hour[row]!), Infinity);
    at.push(-1 - groups.length);
    groups.push({ name, count: members.length, cheapest, isOpen });
    if (isOpen) {
      for (const row of members) {
        at.push(row);
      }
    }
  }
  return { count: at.length, at: Int32Array.from(at), groups };
}
