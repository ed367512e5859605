import assert from 'node:assert/strict';
import { test } from 'node:test';

import { DAY_MS, HOUR_MS, part, span, steps, sums, total } from '../src/costs';
import type { Charge } from '../src/types';

const NOON = Date.UTC(2026, 10, 20, 12);

function charge(more: Partial<Charge>): Charge {
  return {
    charge_id: 'c',
    lease_id: 'l',
    kind: 'cell',
    amount_nusd: 1_000_003,
    start_ms: NOON - HOUR_MS,
    end_ms: NOON,
    owner: { user: 'ada', project: '', notebook: 'one.ipynb' },
    run_id: '',
    marketplace: 'pool',
    machine_id: 'm',
    gpu: 'H100',
    gpu_count: 1,
    rate_nusd_hour: 1,
    final: true,
    ...more
  };
}

test('parts of a line side by side add up to it, to the nano-dollar', () => {
  const line = charge({ start_ms: NOON - 7, end_ms: NOON + 6 });
  let sum = 0n;
  for (let ms = NOON - 20; ms < NOON + 20; ms += 3) {
    sum += part(line, ms, ms + 3);
  }
  assert.equal(sum, 1_000_003n);
  const moment = charge({ start_ms: NOON, end_ms: NOON });
  assert.equal(part(moment, NOON, NOON + 1), 1_000_003n);
  assert.equal(part(moment, NOON - 1, NOON), 0n);
});

test('the bars add up to the total, over midnight too', () => {
  const midnight = Math.floor(NOON / DAY_MS) * DAY_MS;
  const lines = [charge({ start_ms: midnight - HOUR_MS, end_ms: midnight + HOUR_MS + 1 }), charge({ kind: 'idle' })];
  for (const period of ['today', 'week', 'month'] as const) {
    const at = span(period, NOON);
    const bars = steps(lines, at);
    assert.equal(bars.length, { today: 24, week: 7, month: 30 }[period]);
    assert.equal(bars.reduce((sum, bar) => sum + bar.amount, 0n), total(lines, at).amount);
  }
  assert.ok(total(lines, span('today', NOON)).amount < total(lines, span('week', NOON)).amount);
  assert.equal(total(lines, span('week', NOON)).amount, 2_000_006n);
});

test('sums go by key, dearest first, with idle and boot apart', () => {
  const lines = [
    charge({}),
    charge({ kind: 'idle', amount_nusd: 5, owner: { user: 'bob', project: '', notebook: '' } }),
    charge({ kind: 'boot', amount_nusd: 7 }),
    charge({ kind: 'failed_attempt', amount_nusd: 1 }),
    charge({ kind: 'storage', amount_nusd: 2 })
  ];
  const found = sums(lines, 'user', span('today', NOON));
  assert.deepEqual(
    found.map(sum => [sum.key, sum.amount, sum.work, sum.boot, sum.idle, sum.other]),
    [
      ['ada', 1_000_013n, 1_000_003n, 8n, 0n, 2n],
      ['bob', 5n, 0n, 0n, 5n, 0n]
    ]
  );
});
