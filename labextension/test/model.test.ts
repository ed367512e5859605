import assert from 'node:assert/strict';
import { test } from 'node:test';

import { ApiError, Api } from '../src/api';
import { costNow, isEnding, mayBill, stateWords } from '../src/leases';
import { Live, pauseMs } from '../src/live';
import { Model, TRAIL, Trail } from '../src/model';
import type { LeaseState, Now } from '../src/types';
import { plainWords } from '../src/words';
import { T0, now, view } from './stand';

const STATES: readonly LeaseState[] = [
  'wished', 'quoting', 'renting', 'unconfirmed', 'booting', 'linking', 'preparing', 'probing', 'ready', 'unreachable',
  'draining', 'releasing', 'release_unconfirmed', 'released', 'failed'
];

test('a lost server keeps what was seen, and its age grows', () => {
  const model = new Model();
  model.take(now(), 1000);
  model.miss('gone');
  assert.equal(model.problem, 'gone');
  assert.equal(model.now.leases.length, 1);
  assert.equal(model.ageMs(61_000), 60_000);
  model.take(now({ is_up: false, message: 'no broker', leases: [] }), 90_000);
  assert.equal(model.now.leases.length, 1, 'leases outlive the broker');
  assert.equal(model.ageMs(91_000), 90_000, 'nothing newer was seen');
  model.take(now({ leases: [] }), 92_000);
  assert.equal(model.now.leases.length, 0);
  assert.equal(model.problem, '');
});

test('an older view of a lease does not replace a newer one, and an ended one leaves', () => {
  const model = new Model();
  model.take(now({ leases: [view('ready', { seq: 5 })] }), 0);
  model.takeLease(view('booting', { seq: 4 }));
  assert.equal(model.lease('l1')?.lease.state, 'ready');
  model.takeLease(view('releasing', { seq: 6 }));
  assert.equal(model.lease('owl')?.lease.state, 'releasing');
  model.takeLease(view('released', { seq: 7 }));
  assert.equal(model.lease('l1'), undefined);
});

test('costs count on by the rate while it bills, and stand still otherwise', () => {
  assert.equal(costNow(view(), T0, T0 + 1000), 2_000_000n);
  assert.equal(costNow(view('released'), T0, T0 + 1000), 1_000_000n);
  assert.equal(costNow(view('ready', {}, { billed_from_ms: null }), T0, T0 + 1000), 1_000_000n);
  assert.equal(costNow(view(), T0 + 5000, T0), 1_000_000n, 'never less than the server said');
});

test('every state has words, and every one in which money may flow without use says so', () => {
  for (const state of STATES) {
    const words = stateWords(state, plainWords);
    assert.ok(words.length > 0, state);
    if (mayBill(view(state)) && state !== 'ready' && state !== 'renting') {
      assert.match(words, /bill/, state);
    }
  }
  assert.equal(stateWords('releasing', plainWords), 'release asked, not yet confirmed: may still bill');
  assert.ok(isEnding(view('ready', {}, { goal: 'released' })));
});

test('a trail keeps the last values in order', () => {
  const trail = new Trail();
  for (let i = 0; i < TRAIL + 5; i += 1) {
    trail.push(i);
  }
  assert.equal(trail.list.length, TRAIL);
  assert.equal(trail.list[0], 5);
  assert.equal(trail.list.at(-1), TRAIL + 4);
});

test('looks are seldom when hidden, quiet or failing', () => {
  const usual = { refreshMs: 3000, failures: 0, isHidden: false, isWatched: true, isRenting: false };
  assert.equal(pauseMs(usual), 3000);
  assert.equal(pauseMs({ ...usual, isHidden: true }), 60_000);
  assert.equal(pauseMs({ ...usual, isWatched: false }), 300_000);
  assert.equal(pauseMs({ ...usual, isWatched: false, isRenting: true }), 3000);
  assert.equal(pauseMs({ ...usual, failures: 2 }), 12_000);
  assert.equal(pauseMs({ ...usual, failures: 9 }), 60_000);
});

test('a look starts a broker only while somebody watches, and recovers after a lost server', async () => {
  const asked: string[] = [];
  let answer: Now | null = now();
  const api = new Api(async path => {
    asked.push(path);
    if (answer === null) {
      throw new TypeError('network');
    }
    return new Response(JSON.stringify(answer));
  });
  const model = new Model();
  const pauses: number[] = [];
  const live = new Live(api, model, {
    nowMs: () => 5,
    isHidden: () => false,
    later: ms => {
      pauses.push(ms);
      return () => undefined;
    }
  });
  await live.look();
  live.setWatched(true);
  answer = null;
  await live.look();
  assert.match(model.problem, /does not answer/);
  assert.equal(model.now.leases.length, 1);
  answer = now({ leases: [] });
  await live.look();
  assert.equal(model.problem, '');
  assert.deepEqual(asked, ['gpumarket/now', 'gpumarket/now?start=1', 'gpumarket/now?start=1']);
  assert.equal(pauses.at(-1), 3000);
  live.notice({ schema_id: 'https://events.jupyter.org/jupyter_gpumarket/lease/v1' });
  assert.equal(pauses.at(-1), 150);
  live.notice({ schema_id: 'https://elsewhere/v1' });
  assert.equal(pauses.length, 5, 'a notice that is not ours is no reason to look');
});

test('errors are told in words, whoever answers', async () => {
  const answers = [
    new Response(JSON.stringify({ error: 'BudgetExceeded', message: 'too dear', field: '' }), { status: 402 }),
    new Response('<html>proxy</html>', { status: 502 }),
    new Response('', { status: 404 })
  ];
  const api = new Api(async () => answers.shift() ?? Response.error());
  const errors: ApiError[] = [];
  for (let i = 0; i < 3; i += 1) {
    await api.leases(false).catch((error: unknown) => errors.push(error as ApiError));
  }
  assert.deepEqual(errors.map(error => error.status), [402, 502, 404]);
  assert.equal(errors[0]?.message, 'too dear');
  assert.equal(errors[0]?.kind, 'BudgetExceeded');
  assert.match(errors[2]?.message ?? '', /enabled/);
});
