/** Offers in words. What marketplaces send is text on one line here, shortened, and never markup. */
import { age, duration, gib, money, oneLine, type Currency } from '../format';
import type { Words } from '../words';
import { textAt, type Billing, type Offer, type OfferTable } from './columns';
import { priceEdge, PRICE_BINS, VRAM_STOPS } from './pass';
import type { Filters, Sort } from './state';

/** The model as people call it: ours, else the marketplace's spelling; `CPU` where there is no GPU. */
export function modelName(table: OfferTable, row: number, words: Words): string {
  if (table.numbers.gpu_count[row] === 0) {
    return words.__('CPU only');
  }
  return oneLine(textAt(table, 'gpu', row) || textAt(table, 'gpu_raw', row), 40) || words.__('unknown GPU');
}

/** `2 × RTX 4090`. */
export function gpusName(table: OfferTable, row: number, words: Words): string {
  const count = table.numbers.gpu_count[row]!;
  const name = modelName(table, row, words);
  return count > 1 ? `${count} × ${name}` : name;
}

/** Memory a GPU, or of the machine where it has none. */
export function memoryName(table: OfferTable, row: number): string {
  const isGpu = table.numbers.gpu_count[row]! > 0;
  return gib(isGpu ? table.numbers.vram_gib[row]! : table.numbers.memory_gib[row]!);
}

export function placeName(table: OfferTable, row: number): string {
  return oneLine(textAt(table, 'region', row) || textAt(table, 'country', row), 40);
}

/** A group's or chip's name for a model. */
export function groupName(name: string, words: Words): string {
  return oneLine(name, 40) || words.__('CPU only, or unknown');
}

export function tierName(tier: string, words: Words): string {
  const names: Readonly<Record<string, string>> = {
    community: words.__('community'),
    verified: words.__('verified'),
    datacenter: words.__('data centre'),
    tee: words.__('confidential (TEE)'),
    own: words.__('own')
  };
  return names[tier] ?? oneLine(tier, 20);
}

export function kindName(kind: string, words: Words): string {
  return kind === 'spot' ? words.__('spot') : words.__('on demand');
}

export function sortName(sort: Sort, words: Words): string {
  const names: Readonly<Record<Sort, string>> = {
    price: words.__('price an hour'),
    price_per_gpu: words.__('price per GPU'),
    price_per_vram: words.__('price per GiB of GPU memory'),
    total: words.__('price of my job'),
    saving: words.__('saving against hyperscalers'),
    vram: words.__('GPU memory'),
    reliability: words.__('reliability'),
    age: words.__('age of the price')
  };
  return names[sort];
}

/** `−64 %` or `+12 %` against the cheapest hyperscaler; empty where it is not known. */
export function savingName(saving: number): string {
  if (!Number.isFinite(saving)) {
    return '';
  }
  const percent = Math.round(saving * 100);
  return percent === 0 ? '±0 %' : percent > 0 ? `−${percent} %` : `+${-percent} %`;
}

/** The same in one unit, for a column: `now`, `12 s`, `18 h`. */
export function ageShort(seenMs: number, nowMs: number, words: Words): string {
  const ms = Math.max(0, nowMs - seenMs);
  return ms < 2000 ? words.__('now') : duration(ms).split(' ').slice(0, 2).join(' ');
}

/** How long ago a price was seen. */
export function ageName(seenMs: number, nowMs: number, words: Words): string {
  return age(Math.max(0, nowMs - seenMs), words);
}

/** One offer in a sentence, for screen readers and titles. */
export function sentence(table: OfferTable, row: number, total: number, nowMs: number, words: Words): string {
  const parts = [
    words.__('%1, %2', gpusName(table, row, words), memoryName(table, row)),
    words.__('%1 an hour', money(table.numbers.price_nusd_hour[row]!)),
    words.__('%1 for my job', money(total)),
    words.__('at %1', oneLine(textAt(table, 'marketplace', row), 30)),
    placeName(table, row),
    tierName(textAt(table, 'tier', row), words),
    kindName(textAt(table, 'kind', row), words),
    words.__('price seen %1', ageName(table.numbers.seen_ms[row]!, nowMs, words)),
    oneLine(textAt(table, 'note', row), 80)
  ];
  return parts.filter(part => part).join(', ');
}

/** How a marketplace turns time into money, in a sentence. */
export function billingWords(billing: Billing, currency: Currency, words: Words): string {
  const parts = [
    billing.quantum_s <= 1
      ? words.__('Billed by the second')
      : words.__('Billed in steps of %1', duration(billing.quantum_s * 1000))
  ];
  if (billing.minimum_s > 0) {
    parts.push(words.__('at least %1', duration(billing.minimum_s * 1000)));
  }
  if (billing.storage_nusd_gib_hour > 0) {
    parts.push(words.__('disk %1 a GiB and hour', money(billing.storage_nusd_gib_hour, currency)));
  }
  if (billing.ingress_nusd_gib > 0) {
    parts.push(words.__('%1 a GiB in', money(billing.ingress_nusd_gib, currency)));
  }
  if (billing.egress_nusd_gib > 0) {
    parts.push(words.__('%1 a GiB out', money(billing.egress_nusd_gib, currency)));
  }
  if (billing.fee_nusd > 0) {
    parts.push(words.__('%1 once', money(billing.fee_nusd, currency)));
  }
  return `${parts.join(', ')}.`;
}

/** What we saw of this machine ourselves, in a sentence. */
export function ownWords(own: Offer['own'], words: Words): string {
  if (own === null || own.good + own.bad === 0) {
    return words.__('Never rented from here.');
  }
  const parts = [words.__('Rented from here: %1 good, %2 bad.', own.good, own.bad)];
  if (own.boot_s !== null) {
    parts.push(words.__('It was up after %1.', duration(own.boot_s * 1000)));
  }
  if (own.gap_ppm !== null && own.gap_ppm > 0) {
    parts.push(words.__('Its bill was %1 % above our reckoning.', (own.gap_ppm / 10_000).toFixed(1)));
  }
  if (own.last_trouble) {
    parts.push(words.__('Last trouble: %1', oneLine(own.last_trouble, 200)));
  }
  return parts.join(' ');
}

/** The slider's bins that a price filter stands for. */
export function priceBinsOf(filters: Filters): readonly [number, number] {
  let low = 0;
  while (low + 1 < PRICE_BINS && filters.priceLow !== null && priceEdge(low + 1) <= filters.priceLow) {
    low++;
  }
  let high = PRICE_BINS - 1;
  while (high > low && filters.priceHigh !== null && priceEdge(high) >= filters.priceHigh) {
    high--;
  }
  return [low, high];
}

/** The price filter that two bins of the slider stand for. */
export function priceFilterOf(low: number, high: number): Pick<Filters, 'priceLow' | 'priceHigh'> {
  return {
    priceLow: low === 0 ? null : priceEdge(low),
    priceHigh: high === PRICE_BINS - 1 ? null : priceEdge(high + 1)
  };
}

/** Likewise for memory, whose bins are the sizes that cards have. */
export function vramBinsOf(filters: Filters): readonly [number, number] {
  const last = VRAM_STOPS.length - 1;
  const low = filters.vramLow === null ? 0 : Math.max(0, VRAM_STOPS.findIndex(stop => stop >= filters.vramLow!));
  const above = VRAM_STOPS.findIndex(stop => filters.vramHigh !== null && stop > filters.vramHigh);
  return [low, Math.max(low, above < 0 ? last : above - 1)];
}

export function vramFilterOf(low: number, high: number): Pick<Filters, 'vramLow' | 'vramHigh'> {
  return {
    vramLow: low === 0 ? null : VRAM_STOPS[low]!,
    vramHigh: high === VRAM_STOPS.length - 1 ? null : VRAM_STOPS[high]!
  };
}

/** A range in words: `any`, `from $0.10`, `up to $2.00`, `$0.10 to $2.00`. */
export function rangeWords(low: string | null, high: string | null, words: Words): string {
  if (low === null) {
    return high === null ? words.__('any') : words.__('up to %1', high);
  }
  return high === null ? words.__('from %1', low) : words.__('%1 to %2', low, high);
}
