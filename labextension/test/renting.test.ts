import assert from 'node:assert/strict';
import { test } from 'node:test';

import { ApiError } from '../src/api';
import { offerAt, tableOf } from '../src/offers/columns';
import { Renting, phasesOf } from '../src/offers/renting';
import type { OffersSource } from '../src/offers/source';
import type { Defaults, LeaseRequest, LeaseState, LeaseView } from '../src/types';
import { columnsOf, type Given } from './offers-data';
import { T0, view } from './stand';

const DEFAULTS: Defaults = { ask: true, budget: '5.00', hours: 2, max_price: '', project: '', user: '' };

function at(state: LeaseState, seq: number): LeaseView {
  return view(state, { seq });
}

/** A marketplace that answers as it is told to. */
class Told implements OffersSource {
  wishes: LeaseRequest[] = [];
  released: string[] = [];
  readonly states: LeaseState[] = ['quoting', 'booting', 'ready'];
  failures: unknown[] = [];
  private seq = 0;

  columns = (): Promise<never> => Promise.reject(new Error('not asked'));
  defaults = (): Promise<Defaults> => Promise.resolve(DEFAULTS);

  async rent(wish: LeaseRequest): Promise<LeaseView> {
    this.wishes.push(wish);
    const failure = this.failures.shift();
    if (failure !== undefined) {
      throw failure;
    }
    return at('wished', ++this.seq);
  }

  async lease(): Promise<LeaseView> {
    return at(this.states.shift() ?? 'ready', ++this.seq);
  }

  async release(id: string): Promise<LeaseView> {
    this.released.push(id);
    this.states.splice(0, 9, 'releasing', 'released');
    return at('releasing', ++this.seq);
  }
}

function renting(source: OffersSource, offer: Given = {}, hours = 1): Renting {
  let ids = 0;
  return new Renting({
    source,
    offer: offerAt(tableOf(columnsOf([{ gpu: 'T4', price_nusd_hour: 350_000_000, ...offer }])), 0),
    defaults: DEFAULTS,
    hours,
    newId: () => `id-${++ids}`,
    pause: () => Promise.resolve(),
    changed: () => undefined
  });
}

async function until(holds: () => boolean): Promise<void> {
  for (let i = 0; i < 1000 && !holds(); i++) {
    await new Promise(resolve => setImmediate(resolve));
  }
  assert.ok(holds());
}

test('a form that says no exact amount, no hours or too little buys nothing', async () => {
  const source = new Told();
  const cases = [
    [{ budget: '1,50' }, 'no amount'], [{ budget: '' }, 'no amount'], [{ budget: '0' }, 'no amount'], [{ budget: '1e3' }, 'no amount'],
    [{ budget: '0.001' }, 'too small'], [{ hours: '' }, 'no hours'], [{ hours: '-1' }, 'no hours'], [{ hours: '9000' }, 'too long'],
    [{ name: '../x' }, 'bad name']
  ] as const;
  for (const [form, expected] of cases) {
    const one = renting(source);
    one.change(form);
    const wish = one.wish;
    assert.equal('problem' in wish && wish.problem, expected, JSON.stringify(form));
    await one.submit();
    assert.equal(one.stage, 'form');
  }
  assert.deepEqual(source.wishes, []);
});

test('the wish is for this very offer, with the budget to the nano-dollar and the hours in seconds', async () => {
  const source = new Told();
  const one = renting(source, { offer_id: 'o-7', marketplace: 'vast', kind: 'spot' }, 1.5);
  one.change({ budget: '0.123456789', name: 'mine' });
  await one.submit();

  assert.deepEqual(source.wishes, [{
    request_id: 'id-1', query: { marketplaces: ['vast'], offer_id: 'o-7', kind: 'spot' }, budget_nusd: 123_456_789, max_s: 5400, name: 'mine'
  }]);
});

test('any like it means the same model, memory and count, and not dearer', () => {
  const one = renting(new Told(), { gpu: 'RTX 4090', vram_gib: 23.6, gpu_count: 2 });
  one.change({ orNext: true });
  const wish = one.wish as LeaseRequest;

  assert.deepEqual(wish.query, { gpu: 'RTX 4090:23GB:2', max_price_nusd_hour: 350_000_000, kind: 'on_demand' });
});

test('it is followed until it is ready', async () => {
  const source = new Told();
  const one = renting(source);
  await one.submit();
  await until(() => one.isDone);

  assert.equal(one.view?.lease.state, 'ready');
  assert.deepEqual(source.released, []);
});

test('a node that was ready is followed to its confirmed end, once it is given back', async () => {
  const source = new Told();
  const one = renting(source);
  await one.submit();
  await until(() => one.isDone);
  await one.cancel();
  await until(() => one.view?.lease.state === 'released');

  assert.equal(source.released.length, 1);
});

test('after a lost answer, asking again sends the same request, and giving up finds and releases it', async () => {
  const lost = new ApiError('no answer', 0);
  const source = new Told();
  source.failures = [lost, lost];
  const one = renting(source);
  await one.submit();
  assert.equal(one.stage, 'lost');
  await one.submit();
  assert.equal(one.stage, 'lost');
  await one.cancel();
  await until(() => one.view?.lease.state === 'released');

  assert.deepEqual(source.wishes.map(wish => wish.request_id), ['id-1', 'id-1', 'id-1']);
  assert.equal(source.released.length, 1);
});

test('a refusal leads back to the form, with its words', async () => {
  const source = new Told();
  source.failures = [new ApiError('the budget of ann is used up', 402)];
  const one = renting(source);
  await one.submit();

  assert.equal(one.stage, 'form');
  assert.equal(one.trouble, 'the budget of ann is used up');
});

test('whichever end comes first is told: the hours or the money', () => {
  const one = renting(new Told(), {}, 2);
  one.change({ budget: '0.35' });
  assert.equal(one.endsAfterS(one.wish as LeaseRequest), 3600);
  assert.equal(one.worstNusd(one.wish as LeaseRequest), 350_000_000);
  one.change({ budget: '9' });
  assert.equal(one.endsAfterS(one.wish as LeaseRequest), 7200);
  assert.equal(one.worstNusd(one.wish as LeaseRequest), 707_000_000); // 1 % dearer is still accepted
});

test('each phase tells its time; the one that runs counts on', () => {
  const linking = view('linking', {}, { phases: { wished: T0, quoting: T0 + 100, renting: T0 + 300, booting: T0 + 1300, linking: T0 + 5300 } });
  const told = phasesOf(linking, T0 + 6300).map(phase => [phase.state, phase.tookMs, phase.isPast, phase.isNow]);

  assert.deepEqual(told, [
    ['quoting', 200, true, false], ['renting', 1000, true, false], ['booting', 4000, true, false], ['linking', 1000, false, true],
    ['preparing', null, false, false], ['probing', null, false, false], ['ready', null, false, false]
  ]);
});
