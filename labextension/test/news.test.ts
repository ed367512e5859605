import assert from 'node:assert/strict';
import { test } from 'node:test';

import { badgeText, isForGpu, remembered, withMagic } from '../src/badges';
import { totals } from '../src/dialog-values';
import { DOLLARS } from '../src/format';
import { Teller } from '../src/news';
import { preferences } from '../src/settings';
import type { Now } from '../src/types';
import { plainWords } from '../src/words';
import { T0, now, view } from './stand';

const HOW = { words: plainWords, currency: DOLLARS, idleMs: 600_000 };

function texts(teller: Teller, before: Now | null, after: Now): readonly string[] {
  return teller.news(before, after, HOW).map(item => item.key.split(':').slice(0, 1).join(''));
}

test('each matter is told once', () => {
  const teller = new Teller();
  const full = now({ leases: [view('ready', { cost_nusd: 8_000_000_000 })] });
  assert.deepEqual(texts(teller, null, full), ['budget']);
  assert.deepEqual(texts(teller, full, full), []);
  const spent = now({ leases: [view('ready', { cost_nusd: 10_000_000_000 })] });
  assert.deepEqual(texts(teller, full, spent), ['budget'], 'used up is another matter than 80 %');
});

test('a node without a cell is told after the agreed minutes, and again only after it has worked', () => {
  const node = (running: readonly string[]): Now['leases'][number]['node'] => ({
    lease_id: 'l1', name: 'owl', link: 'up', link_detail: '', round_trip_ms: null, phase: 'ready', steps: [],
    sessions: [], running, use: null, last_seen_ms: T0
  });
  const at = (ms: number, running: readonly string[] = []): Now =>
    now({ at_ms: T0 + ms, leases: [view('ready', { node: node(running) })] });
  const teller = new Teller();
  assert.deepEqual(texts(teller, null, at(0)), []);
  assert.deepEqual(texts(teller, at(0), at(599_999)), []);
  assert.deepEqual(texts(teller, at(0), at(600_000)), ['idle']);
  assert.deepEqual(texts(teller, at(0), at(700_000)), []);
  assert.deepEqual(texts(teller, at(0), at(800_000, ['r1'])), []);
  assert.deepEqual(texts(teller, at(0), at(900_000)), []);
  assert.deepEqual(texts(teller, at(0), at(1_600_000)), ['idle']);
});

test('interruptions, ends that nobody asked for, and orphans are told', () => {
  const teller = new Teller();
  const before = now();
  assert.deepEqual(texts(teller, before, now({ leases: [view('unreachable')] })), ['link']);
  assert.deepEqual(texts(teller, before, now({ leases: [] })), ['lost']);
  const asked = now({ leases: [view('ready', {}, { goal: 'released', lease_id: 'l2' })] });
  assert.deepEqual(texts(teller, asked, now({ leases: [] })), [], 'a release that was asked for is no news');
  const orphan = { marketplace: 'vast', rental_id: 'i1', label: 'x', found_ms: T0, price_nusd_hour: null, state: 'found' as const };
  assert.deepEqual(texts(teller, null, now({ orphans: [orphan] })), ['orphan']);
  assert.deepEqual(texts(teller, null, now({ orphans: [{ ...orphan, rental_id: 'i2', state: 'gone' }] })), []);
});

test('what a kernel or a notebook tells is taken only as what it must be', () => {
  for (const wrong of [null, 'x', {}, { run_id: 5 }, { run_id: '../../x' }, { run_id: '' }, { run_id: '<b>' }]) {
    assert.equal(remembered(wrong), null);
  }
  const told = remembered({ run_id: 'a1', node: 'owl', amount_nusd: 1.5, final: 'yes' });
  assert.deepEqual(told, { run_id: 'a1', node: 'owl', amount_nusd: null, final: false });
  assert.ok(told);
  assert.equal(badgeText(told, plainWords, DOLLARS), 'on owl');
  assert.equal(badgeText({ ...told, amount_nusd: 350_000_000, final: true }, plainWords, DOLLARS), '$0.35');
});

test('the magic is put on once', () => {
  assert.equal(withMagic('x = 1'), '%%gpu\nx = 1');
  assert.equal(withMagic('%%gpu H100\nx = 1'), '%%gpu H100\nx = 1');
  assert.equal(isForGpu('%%gpus\n'), false);
});

test('totals are read with care', () => {
  assert.deepEqual(totals('2.5', '12.50'), { max_s: 9000, budget_nusd: 12_500_000_000 });
  for (const [hours, budget] of [['', '1'], ['0', '1'], ['-1', '1'], ['1e3', '1'], ['1', ''], ['1', '0'], ['1', '1,5']] as const) {
    assert.equal(totals(hours, budget), null);
  }
});

test('settings that cannot be used fall back to what is usual', () => {
  const odd = preferences({ maxPrice: 'cheap', hours: -1, refreshSeconds: 0, currency: 'euro', currencyRate: '0', idleMinutes: 'x' });
  assert.deepEqual([odd.maxPrice, odd.hours, odd.refreshMs, odd.currency, odd.idleMinutes], ['', 0, 3000, DOLLARS, 10]);
  assert.deepEqual(preferences({ currency: 'EUR', currencyRate: '0.92' }).currency, { code: 'EUR', rate: '0.92' });
});
