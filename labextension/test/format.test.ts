import assert from 'node:assert/strict';
import { test } from 'node:test';

import { age, decimalNano, duration, money, oneLine, parseUsd, percent, typedUsd, usd, usdShort } from '../src/format';

test('amounts are exact to the nano-dollar', () => {
  assert.equal(usd(1_250_000_000), '$1.25');
  assert.equal(usd(-291_667), '-$0.000291667');
  assert.equal(usd(0), '$0.00');
  assert.equal(usd(9_007_199_254_740_993n), '$9,007,199.254740993');
  assert.equal(usd(1_999_999_999, 2), '$2.00');
  assert.equal(usd(1_234_567_000_000_000, 0), '$1,234,567');
});

test('short amounts keep two digits that count', () => {
  assert.equal(usdShort(350_000_000), '$0.35');
  assert.equal(usdShort(12_345_678_901), '$12.35');
  assert.equal(usdShort(291_667), '$0.00029');
  assert.equal(usdShort(1), '$0.000000001');
  assert.equal(usdShort(0), '$0.00');
});

test('another currency is marked as a conversion, and a rate that is none is not used', () => {
  assert.equal(money(2_000_000_000, { code: 'EUR', rate: '0.92' }), '≈ 1.84 EUR');
  assert.equal(money(2_000_000_000, { code: 'EUR', rate: 'cheap' }), '$2.00');
});

test('what somebody types is an amount or nothing', () => {
  assert.equal(parseUsd('2.50'), 2_500_000_000);
  assert.equal(parseUsd(' $0.000000001 '), 1);
  for (const wrong of ['', 'abc', '1,50', '-1', '1e3', '0.0000000001', '99999999999', '1.2.3']) {
    assert.equal(parseUsd(wrong), null, wrong);
  }
  assert.equal(typedUsd(1_234_500_000_000), '1234.50');
  assert.equal(decimalNano('7'), 7_000_000_000n);
});

test('durations and ages are told in two units', () => {
  assert.equal(duration(0), '0 s');
  assert.equal(duration(59_999), '59 s');
  assert.equal(duration(3_600_000), '1 h');
  assert.equal(duration(7_505_000), '2 h 5 min');
  assert.equal(duration(100_800_000), '1 d 4 h');
  assert.equal(age(1000), 'now');
  assert.equal(age(61_000), '1 min 1 s ago');
});

test('a stranger\u2019s text stays on one line and obeys nothing', () => {
  assert.equal(oneLine('a\nb\u202Ec\u0000d'), 'a b·c·d');
  assert.equal(oneLine('x'.repeat(500), 10), 'xxxxxxxxx…');
});

test('shares stay between nothing and all', () => {
  assert.deepEqual([percent(1, 0), percent(-1, 2), percent(1, 2), percent(5, 2)], [0, 0, 50, 100]);
});
