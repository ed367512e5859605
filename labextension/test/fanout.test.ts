import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Api } from '../src/api';
import { aimOf } from '../src/dialog-values';
import { Pace, aimWords, clusterMood, clusterState, deedWords, mapMood, mapState, progressWords, taskCounts } from '../src/fanout';
import type { ClusterNow, DaskView, FanOut, MapNow, MapView } from '../src/fanout';
import { DOLLARS } from '../src/format';
import { layout } from '../src/layout';
import { status } from '../src/status';
import { groups } from '../src/views/running';
import { plainWords } from '../src/words';
import { T0, now, view } from './stand';

const TASKS = { waiting: 2, queued: 3, unrunnable: 1, processing: 4, in_memory: 5, erred: 1, poisoned: [] };

function dask(more: Partial<DaskView> = {}): DaskView {
  return { state: 'running', head: 'l1', head_reason: '', workers: [], tasks: TASKS, notices: [], ...more };
}

function cluster(more: Partial<ClusterNow> = {}): ClusterNow {
  return {
    name: 'crew',
    cluster_id: 'crew-1',
    aim: { minimum: 2, maximum: 2, max_nusd_hour: null, finish_by_ms: null },
    budget_nusd: 6_000_000_000,
    spent_nusd: 1_000_000,
    rate_nusd_hour: 850_000_000,
    leases: ['l1', 'l2'],
    nodes: 2,
    is_ended: false,
    dask: dask(),
    decisions: [],
    notices: [],
    ...more
  };
}

function aMap(more: Partial<MapView> = {}): MapNow {
  const map: MapView = {
    map_id: 'm1',
    state: 'running',
    count: 100,
    ok: 18,
    failed: 1,
    poisoned: 1,
    running: 2,
    waiting: 78,
    checks: 0,
    checked: 0,
    began_ms: T0,
    ended_ms: null,
    reason: '',
    seats: [{ lease_id: 'l1', state: 'ready' }, { lease_id: 'l2', state: 'refused' }],
    label: '',
    item_name: 'trial',
    owner: { user: '', project: '', notebook: '' },
    ...more
  };
  return { lease: 'l1', map, spent_nusd: 2_000_000 };
}

function sight(at_ms: number, maps: readonly MapNow[]): FanOut {
  return { at_ms, is_up: true, clusters: [], maps, troubles: [] };
}

test('a cluster that lacks nodes waits, one with notices or poisoned tasks is to be looked at', () => {
  assert.equal(clusterMood(cluster()), 'good');
  assert.equal(clusterMood(cluster({ nodes: 1 })), 'wait');
  assert.equal(clusterMood(cluster({ notices: ['3 nodes in a row did not become ready'] })), 'warn');
  assert.equal(clusterMood(cluster({ dask: dask({ tasks: { ...TASKS, poisoned: ['t'] } }) })), 'warn');
  assert.equal(clusterState(cluster({ nodes: 1 }), plainWords), 'waits for nodes: 1 of 2 are ready');
  assert.match(clusterState(cluster({ is_ended: true }), plainWords), /may still bill/);
});

test('tasks that wait for whatever reason count as waiting', () => {
  assert.deepEqual(taskCounts(TASKS), { running: 4, waiting: 6, inMemory: 5, failed: 1 });
});

test('an aim and a decision are told in words', () => {
  const { aim } = cluster();
  assert.equal(aimWords(aim, plainWords, DOLLARS), '2 nodes');
  const limits = { ...aim, minimum: 1, maximum: 8, max_nusd_hour: 6_000_000_000 };
  assert.equal(aimWords(limits, plainWords, DOLLARS), '1 to 8 nodes, at most $6.00/h');
  const decision = { at_ms: T0, grow: 0, release: ['l1'], reasons: ['idle'] };
  assert.equal(deedWords(decision, plainWords), 'give back 1 node');
  assert.equal(deedWords({ ...decision, release: [] }, plainWords), 'leave it as it is');
});

test('a map tells what failed, how fast it is, how long still, and its cost', () => {
  assert.equal(
    progressWords(aMap(), 2, plainWords, DOLLARS),
    '1 failed · 1 poisoned · 2 at work on 1 node · 2/s · 40 s left · $0.0020 so far'
  );
  assert.equal(mapMood(aMap().map), 'warn');
  assert.equal(mapState(aMap({ state: 'done' }).map, plainWords), 'done, with errors');
  assert.equal(mapMood(aMap({ state: 'done', failed: 0, poisoned: 0 }).map), 'good');
});

test('the pace is that of the last half minute, and of the whole map at first', () => {
  const pace = new Pace();
  const { map } = aMap();
  assert.equal(pace.perS(map, T0 + 10_000), 2);
  pace.take(sight(T0 + 10_000, [aMap()]));
  pace.take(sight(T0 + 20_000, [aMap({ ok: 58 })]));
  assert.equal(pace.perS(map, T0 + 20_000), 4);
  pace.take(sight(T0 + 45_000, [aMap({ ok: 58 })]));
  assert.equal(pace.perS(map, T0 + 45_000), 0, 'nothing has moved since');
  pace.take(sight(T0 + 46_000, []));
  pace.take(sight(T0 + 47_000, [aMap()]));
  assert.equal(pace.perS(map, T0 + 47_000), 20_000 / 47_000, 'what is gone is forgotten');
});

test('nodes stand with their cluster, also one that has none yet', () => {
  const own = view('ready', {}, { lease_id: 'l9', cluster_id: 'l9' });
  const member = view('ready', {}, { cluster_id: 'crew-1' });
  const found = groups([own, member], [cluster(), cluster({ cluster_id: 'x-1' })]);
  assert.deepEqual(
    found.map(group => [group.key, group.leases.length]),
    [['crew-1', 1], ['x-1', 0], ['l9', 1]]
  );
});

test('a size that cannot be is refused by its field, and a time of day is the next one', () => {
  const typed = { minimum: '1', maximum: '4', price: '', finish: '', budget: '6' };
  const at = new Date(2026, 10, 28, 12, 0).getTime();
  const of = (more: object): unknown => {
    const found = aimOf({ ...typed, ...more }, at);
    return typeof found === 'string' ? found : found.aim.finish_by_ms;
  };
  assert.deepEqual(
    [{ minimum: '0' }, { maximum: '1001' }, { minimum: '5' }, { maximum: '2.5' }].map(of),
    ['nodes', 'nodes', 'nodes', 'nodes']
  );
  assert.deepEqual([{ price: 'x' }, { price: '0' }, { budget: '' }, { finish: '24:00' }].map(of), ['price', 'price', 'budget', 'finish']);
  assert.equal(of({ finish: '18:30' }), new Date(2026, 10, 28, 18, 30).getTime());
  assert.equal(of({ finish: '9:05' }), new Date(2026, 10, 29, 9, 5).getTime());
  assert.deepEqual(aimOf({ ...typed, price: '6.5' }, at), {
    aim: { minimum: 1, maximum: 4, max_nusd_hour: 6_500_000_000, finish_by_ms: null },
    budget_nusd: 6_000_000_000
  });
});

test('what is done to a cluster names the very cluster that was seen', async () => {
  const sent: [string, unknown][] = [];
  const api = new Api((path, init) => {
    sent.push([path, JSON.parse(String(init.body))]);
    return Promise.resolve(new Response('{}'));
  });
  const odd = cluster({ name: 'a/b' });
  await api.aim(odd, odd.aim, null);
  await api.endCluster(odd);
  await api.stopMap('m 1', 'l1');
  assert.deepEqual(sent, [
    ['gpumarket/clusters/a%2Fb/aim', { cluster_id: 'crew-1', aim: odd.aim, budget_nusd: null }],
    ['gpumarket/clusters/a%2Fb/release', { cluster_id: 'crew-1' }],
    ['gpumarket/maps/m%201/stop', { lease: 'l1' }]
  ]);
});

test('a kept layout of another version is as usual where it cannot be used', () => {
  assert.deepEqual(layout({ tab: 'costs', period: 'year', by: 7 }), { tab: 'costs', period: 'today', by: 'notebook' });
  assert.deepEqual(layout(null), { tab: 'offers', period: 'today', by: 'notebook' });
});

test('the status line is empty until there is something to tell', () => {
  const at = { words: plainWords, currency: DOLLARS, ageMs: 5000, isLost: false };
  assert.equal(status({ ...at, now: now({ leases: [], spent_today_nusd: 0 }) }), null);
  assert.equal(status({ ...at, ageMs: null, now: now() }), null);
  assert.deepEqual(status({ ...at, now: now() }), { level: 'ok', text: '1 GPU node · $3.60/h · $0.0050 today' });
  assert.equal(status({ ...at, isLost: true, now: now() })?.text.endsWith('5 s ago'), true);
});
