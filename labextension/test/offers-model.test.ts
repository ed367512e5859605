import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { tableOf, offerAt } from '../src/offers/columns';
import { meansModel, readWish } from '../src/offers/grammar';
import { cost, priceParts } from '../src/offers/job';
import { OffersModel, windowOf } from '../src/offers/model';
import { PRICE_BINS, VRAM_STOPS, priceEdge } from '../src/offers/pass';
import { FIRST_STATE, stateFrom } from '../src/offers/state';
import { columnsOf, manyColumns, type Given } from './offers-data';

const DOLLAR = 1e9;

function modelOf(...offers: Given[]): OffersModel {
  const model = new OffersModel();
  model.setTable(tableOf(columnsOf(offers)));
  return model;
}

/** Cases that the broker's own tests read too. Run from `labextension`. */
function shared<T>(name: string): T[] {
  return JSON.parse(readFileSync(`test/${name}`, 'utf8')) as T[];
}

interface GrammarCase {
  text: string;
  refused?: true;
  names: string[] | null;
  vram: [number | null, number | null];
  count: [number | null, number | null];
}

interface JobCase extends Given {
  what: string;
  hours: number;
  in_gib: number;
  out_gib: number;
  parts: number[];
}

function shown(model: OffersModel): string[] {
  return [...model.lines.at].map(line => (line < 0 ? `# ${model.lines.groups[-1 - line]!.name}` : model.table.offerId[line]!));
}

const MARKET: Given[] = [
  { offer_id: 'a', gpu: 'RTX 4090', vram_gib: 24, price_nusd_hour: 0.3 * DOLLAR, marketplace: 'vast', region: 'eu-west' },
  { offer_id: 'b', gpu: 'RTX 4090', vram_gib: 24, price_nusd_hour: 0.7 * DOLLAR, gpu_count: 2, kind: 'spot' },
  { offer_id: 'c', gpu: 'H100 SXM', vram_gib: 79.6, price_nusd_hour: 2 * DOLLAR, tier: 'datacenter', country: 'DE' },
  { offer_id: 'd', gpu: '', gpu_raw: 'Strange 9000', vram_gib: 20, price_nusd_hour: 0.1 * DOLLAR, tier: 'verified' },
  { offer_id: 'e', gpu: '', gpu_count: 0, vram_gib: 0, price_nusd_hour: 0.02 * DOLLAR }
];

test('every filter takes away what it names and nothing else', () => {
  const cases: [object, string[]][] = [
    [{}, ['e', 'd', 'a', 'b', 'c']],
    [{ priceHigh: 0.3 * DOLLAR }, ['e', 'd', 'a']],
    [{ priceLow: 0.3 * DOLLAR, priceHigh: 0.7 * DOLLAR }, ['a', 'b']],
    [{ vramLow: 80 }, ['c']],
    [{ vramLow: 20, vramHigh: 24 }, ['d', 'a', 'b']],
    [{ models: ['RTX 4090'] }, ['a', 'b']],
    [{ models: [''] }, ['e', 'd']],
    [{ marketplaces: ['vast'] }, ['a']],
    [{ region: 'de' }, ['c']],
    [{ tier: 'verified' }, ['d', 'c']],
    [{ kind: 'spot' }, ['b']],
    [{ text: 'RTX4090:24GB:2' }, ['b']],
    [{ text: 'h100' }, ['c']],
    [{ text: 'none' }, ['e']],
    [{ text: 'strange' }, ['d']],
    [{ text: 'eu 4090' }, ['a']],
    [{ text: '<script>' }, []]
  ];
  for (const [filters, expected] of cases) {
    const model = modelOf(...MARKET);
    model.filter(filters);
    assert.deepEqual(shown(model), expected, JSON.stringify(filters));
  }
});

test('a control counts what it could bring: all filters but its own', () => {
  const model = modelOf(...MARKET);
  model.filter({ models: ['H100 SXM'], priceHigh: 1 * DOLLAR });

  assert.equal(model.found.count, 0);
  assert.equal(model.found.priceBins.reduce((sum, n) => sum + n), 1); // the H100, whatever it costs
  const counts = model.table.texts.gpu.names.map((name, code) => [name, model.found.models[code]]);
  assert.deepEqual(Object.fromEntries(counts), { 'RTX 4090': 2, 'H100 SXM': 0, '': 2 });
});

test('the histograms and the list agree with a plain recount of 20,000 offers', () => {
  const model = new OffersModel();
  model.setTable(tableOf(manyColumns(20_000)));
  model.filter({ priceLow: 0.5 * DOLLAR, priceHigh: 3 * DOLLAR, vramLow: 24, vramHigh: 80, tier: 'verified' });
  const { price_nusd_hour: price, vram_gib: vram } = model.table.numbers;
  const tiers = model.table.texts.tier;
  const fits = (row: number): boolean => tiers.names[tiers.codes[row]!] !== 'community';
  const inVram = (row: number): boolean => vram[row]! >= 24 * 0.91 && vram[row]! <= 80;
  const inPrice = (row: number): boolean => price[row]! >= 0.5 * DOLLAR && price[row]! <= 3 * DOLLAR;
  const rows = Array.from({ length: model.table.count }, (_, row) => row).filter(fits);

  const expected = rows.filter(row => inVram(row) && inPrice(row));
  assert.deepEqual([...model.lines.at], expected); // sent cheapest first, so the order is the row's
  assert.equal(model.found.priceBins.reduce((sum, n) => sum + n), rows.filter(inVram).length);
  assert.equal(model.found.vramBins.reduce((sum, n) => sum + n), rows.filter(inPrice).length);
  assert.equal(model.found.vramBins[VRAM_STOPS.indexOf(24)], rows.filter(r => inPrice(r) && vram[r] === 24).length);
});

test('each order puts its best first and the unknown last', () => {
  const offers: Given[] = [
    { offer_id: 'x', price_nusd_hour: 4 * DOLLAR, gpu_count: 4, vram_gib: 24, reliability: 0.9, seen_ms: 1, baseline_nusd_hour: 8 * DOLLAR },
    { offer_id: 'y', price_nusd_hour: 2 * DOLLAR, gpu_count: 1, vram_gib: 80, seen_ms: 3, baseline_nusd_hour: 2.5 * DOLLAR, billing: { fee_nusd: 9 * DOLLAR } },
    { offer_id: 'z', price_nusd_hour: 3 * DOLLAR, gpu_count: 1, vram_gib: 48, reliability: 0.99, seen_ms: 2 }
  ];
  const orders: Record<string, string> = {
    price: 'yzx', price_per_gpu: 'xyz', price_per_vram: 'yxz', total: 'zxy', saving: 'xyz', vram: 'yzx', reliability: 'zxy', age: 'yzx'
  };
  for (const [sort, expected] of Object.entries(orders)) {
    const model = modelOf(...offers);
    model.update({ sort: sort as never });
    assert.equal(shown(model).join(''), expected, sort);
  }
  const model = modelOf(...offers);
  model.update({ sort: 'reliability', descending: true });
  assert.deepEqual(shown(model), ['x', 'z', 'y']);
});

test('groups come in the order of their best offer, and open to show their members', () => {
  const model = modelOf(...MARKET);
  model.update({ grouped: true });
  assert.deepEqual(shown(model), ['# ', '# Strange 9000', '# RTX 4090', '# H100 SXM']);

  model.toggleGroup('RTX 4090');
  assert.deepEqual(shown(model), ['# ', '# Strange 9000', '# RTX 4090', 'a', 'b', '# H100 SXM']);
  assert.deepEqual(model.lines.groups[2], { name: 'RTX 4090', count: 2, cheapest: 0.3 * DOLLAR, isOpen: true });
});

test('a choice, filters and order stay when a new list comes', () => {
  const model = modelOf(...MARKET);
  model.filter({ kind: 'spot' });
  model.select(1);
  assert.equal(model.selectedOffer?.offer_id, 'b');

  model.setTable(tableOf(columnsOf([...MARKET].reverse())));
  assert.equal(model.selectedOffer?.offer_id, 'b');
  assert.deepEqual(shown(model), ['b']);
  model.setTable(tableOf(columnsOf([])));
  assert.equal(model.selectedOffer, null);
  assert.notEqual(model.selected, '');
});

test('listeners hear each change once, and none that changes nothing', () => {
  const model = modelOf(...MARKET);
  let heard = 0;
  const end = model.onChange(() => heard++);
  model.filter({ kind: 'spot' });
  model.filter({ kind: 'spot' });
  assert.equal(heard, 1);
  end();
  model.clearFilters();
  assert.equal(heard, 1);
});

test('the price of a job is reckoned as the broker reckons it, to the nano-dollar', () => {
  const cases = shared<JobCase>('job-cases.json');
  assert.ok(cases.length >= 5);
  for (const { what, hours, in_gib, out_gib, parts, ...offer } of cases) {
    const table = tableOf(columnsOf([offer]));
    const { total, ...ours } = priceParts(table, 0, { hours, inGib: in_gib, outGib: out_gib });
    assert.deepEqual(Object.values(ours), parts, what);
    assert.equal(total, parts.reduce((sum, part) => sum + part), what);
  }
});

test('costs are exact where a double would not be', () => {
  for (const [rate, seconds] of [[999_999_999_999, 31_622_399], [1, 1], [350_000_000, 3599], [123_456_789_123, 86_401]] as const) {
    const exact = (BigInt(rate) * BigInt(seconds) + 3599n) / 3600n;
    const ours = cost(rate, seconds);
    assert.equal(BigInt(ours), exact, `${rate} for ${seconds} s`);
  }
});

test('the grammar is read as the broker reads it', () => {
  const cases = shared<GrammarCase>('grammar-cases.json');
  assert.ok(cases.length > 10);
  for (const { text, refused, names, vram, count } of cases) {
    const wish = readWish(text);
    if (refused) {
      assert.equal(wish, null, text);
      continue;
    }
    const near = (value: number | null): number | null => (value === null ? null : Math.round(value * 1e6) / 1e6);
    assert.ok(wish, text);
    assert.deepEqual([wish.names, near(wish.vramLow), wish.vramHigh, wish.countLow, wish.countHigh], [names, ...vram, ...count], text);
  }
});

test('a name means its variants, not its neighbours', () => {
  for (const [wanted, model] of [['A100', 'A100 PCIe 80GB'], ['rtx4090', 'RTX 4090'], ['H100 SXM', 'H100 SXM'], ['4090', 'NVIDIA GeForce RTX 4090']] as const) {
    assert.ok(meansModel(wanted, model), `${wanted} means ${model}`);
  }
  for (const [wanted, model] of [['4090', 'RTX 4090 D'], ['RTX 3070', 'RTX 3070 Ti'], ['A10', 'A100 PCIe 80GB'], ['', 'T4']] as const) {
    assert.ok(!meansModel(wanted, model), `${wanted} does not mean ${model}`);
  }
});

test('a kept state is read back the same, and a damaged one becomes the first', () => {
  const state = stateFrom({ filters: { text: 'H100', priceHigh: 5, models: ['T4', 'T4'] }, sort: 'total', grouped: true, open: ['T4'], job: { hours: 3, inGib: 1, outGib: 2 } });
  assert.deepEqual(stateFrom(JSON.parse(JSON.stringify(state))), state);
  assert.deepEqual(state.filters.models, ['T4']);
  for (const damaged of [null, 7, 'x', [], { filters: 3, sort: 'x', job: { hours: -1, inGib: 'a', outGib: NaN } }, { filters: { kind: {}, priceLow: '1', models: [1] } }]) {
    assert.deepEqual(stateFrom(damaged), FIRST_STATE);
  }
});

test('columns that do not fit together, and amounts that are not exact, are refused', () => {
  const columns = columnsOf([{}, {}]);
  assert.throws(() => tableOf({ ...columns, vram_gib: [24] }), /vram_gib has 1 values for 2 offers/);
  assert.throws(() => tableOf({ ...columns, gpu: { names: ['T4'], codes: [0, 1] } }), /gpu: a code has no name/);
  assert.throws(() => tableOf({ ...columns, price_nusd_hour: [1, 2 ** 60] }), /no exact amount/);
  assert.throws(() => tableOf({ ...columns, price_nusd_hour: [1, 0.5] }), /no exact amount/);
  assert.throws(() => offerAt(tableOf(columns), 2), /no offer in row 2/);
});

test('a window on a list draws what is seen and a little more, whatever the scrolling says', () => {
  assert.deepEqual(windowOf(0, 400, 40, 100_000), { first: 0, last: 16, topPx: 0, heightPx: 4_000_000 });
  assert.deepEqual(windowOf(2_000_000, 400, 40, 100_000, 5), { first: 49_995, last: 50_015, topPx: 1_999_800, heightPx: 4_000_000 });
  assert.deepEqual(windowOf(9e9, 400, 40, 10), { first: 4, last: 10, topPx: 160, heightPx: 400 });
  assert.deepEqual(windowOf(0, 400, 40, 0), { first: 0, last: 0, topPx: 0, heightPx: 0 });
});

test('price bins rise, begin at nothing, and hold what lies on their edge', () => {
  const edges = Array.from({ length: PRICE_BINS }, (_, bin) => priceEdge(bin));
  assert.equal(edges[0], 0);
  assert.ok(edges.every((edge, i) => i === 0 || edge > edges[i - 1]!));
  assert.ok(edges.every(Number.isSafeInteger));
  const model = modelOf({ price_nusd_hour: edges[20]! });
  assert.equal(model.found.priceBins[20], 1);
});

test('filtering 100,000 offers takes a few milliseconds', () => {
  const model = new OffersModel();
  model.setTable(tableOf(manyColumns(100_000)));
  const took: number[] = [];
  for (let i = 0; i < 60; i++) {
    const began = performance.now();
    model.filter({ priceHigh: priceEdge(20 + (i % 20)) });
    took.push(performance.now() - began);
  }
  took.sort((one, other) => one - other);
  console.log(`filter pass over 100,000 offers: median ${took[30]!.toFixed(2)} ms, p95 ${took[57]!.toFixed(2)} ms`);
  assert.ok(took[30]! < 25, `median ${took[30]} ms`); // far above what it takes, so that a busy machine is no failure
});
