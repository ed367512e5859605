/** Clusters and maps: the shapes that the server tells, and what they mean for people. Pure: no page, no clock. */
import { duration, money, rate } from './format';
import type { Currency } from './format';
import type { Mood } from './leases';
import type { Owner } from './types';
import type { Words } from './words';

export interface Aim {
  readonly minimum: number;
  readonly maximum: number;
  readonly max_nusd_hour: number | null;
  readonly finish_by_ms: number | null;
}

export interface DaskWorker {
  readonly name: string;
  readonly lease_id: string;
  readonly state: 'starting' | 'running' | 'ended' | 'retiring' | 'retired';
  readonly processing: number;
  readonly in_memory: number;
  readonly nthreads: number;
}

export interface DaskTasks {
  readonly waiting: number;
  readonly queued: number;
  readonly unrunnable: number;
  readonly processing: number;
  readonly in_memory: number;
  readonly erred: number;
  readonly poisoned: readonly string[];
}

export interface DaskView {
  readonly state: 'off' | 'waiting' | 'starting' | 'running';
  readonly head: string;
  readonly head_reason: string;
  readonly workers: readonly DaskWorker[];
  readonly tasks: DaskTasks;
  readonly notices: readonly string[];
}

export interface Decision {
  readonly at_ms: number;
  readonly grow: number;
  readonly release: readonly string[];
  readonly reasons: readonly string[];
}

export interface ClusterNow {
  readonly name: string;
  readonly cluster_id: string;
  readonly aim: Aim;
  readonly budget_nusd: number;
  readonly spent_nusd: number;
  readonly rate_nusd_hour: number;
  readonly leases: readonly string[];
  readonly nodes: number;
  readonly is_ended: boolean;
  readonly dask: DaskView | null;
  readonly decisions: readonly Decision[];
  readonly notices: readonly string[];
}

export interface Seat {
  readonly lease_id: string;
  readonly state: string;
}

export interface MapView {
  readonly map_id: string;
  readonly state: 'running' | 'done' | 'stopped';
  readonly count: number;
  readonly ok: number;
  readonly failed: number;
  readonly poisoned: number;
  readonly running: number;
  readonly waiting: number;
  readonly checks: number;
  readonly checked: number;
  readonly began_ms: number;
  readonly ended_ms: number | null;
  readonly reason: string;
  readonly seats: readonly Seat[];
  readonly label: string;
  readonly item_name: string;
  readonly owner: Owner;
}

export interface MapNow {
  readonly lease: string;
  readonly map: MapView;
  readonly spent_nusd: number;
}

/** GET /gpumarket/fanout */
export interface FanOut {
  readonly at_ms: number;
  readonly is_up: boolean;
  readonly clusters: readonly ClusterNow[];
  readonly maps: readonly MapNow[];
  readonly troubles: readonly string[];
}

export function ended(map: MapView): number {
  return map.ok + map.failed + map.poisoned;
}

export function clusterMood({ is_ended, notices, nodes, aim, dask }: ClusterNow): Mood {
  if (is_ended) {
    return 'off';
  }
  if (notices.length > 0 || (dask?.tasks.poisoned.length ?? 0) > 0) {
    return 'warn';
  }
  const isWhole = nodes >= aim.minimum && nodes > 0;
  return isWhole && (dask === null || dask.state === 'off' || dask.state === 'running') ? 'good' : 'wait';
}

/** What a cluster is at, in a few words. */
export function clusterState(cluster: ClusterNow, words: Words): string {
  const { dask, aim, nodes, is_ended } = cluster;
  if (is_ended) {
    return words.__('given back; what is not confirmed may still bill');
  }
  if (nodes < aim.minimum) {
    return words.__('waits for nodes: %1 of %2 are ready', nodes, aim.minimum);
  }
  switch (dask?.state ?? 'off') {
    case 'running':
      return words.__('Dask runs');
    case 'starting':
      return words.__('Dask starts');
    case 'waiting':
      return words.__('Dask waits for a node');
    default:
      return words.__('without Dask');
  }
}

/** `3 nodes`, or `1 to 8 nodes, at most $6.00/h, done by 18:30`. */
export function aimWords(aim: Aim, words: Words, currency: Currency): string {
  const { minimum, maximum, max_nusd_hour: most, finish_by_ms: finish } = aim;
  const parts = [
    minimum === maximum ? words._n('%1 node', '%1 nodes', minimum) : words.__('%1 to %2 nodes', minimum, maximum),
    ...(most === null ? [] : [words.__('at most %1', rate(most, currency, words))]),
    ...(finish === null ? [] : [words.__('done by %1', timeOfDay(finish))])
  ];
  return parts.join(', ');
}

/** Hours and minutes by this computer's clock, as a person writes them. */
export function timeOfDay(ms: number): string {
  const at = new Date(ms);
  return `${String(at.getHours()).padStart(2, '0')}:${String(at.getMinutes()).padStart(2, '0')}`;
}

/** What was decided about a cluster's size. */
export function deedWords({ grow, release }: Decision, words: Words): string {
  const gone = release.length;
  return grow > 0
    ? words._n('rent %1 node', 'rent %1 nodes', grow)
    : gone > 0
      ? words._n('give back %1 node', 'give back %1 nodes', gone)
      : words.__('leave it as it is');
}

/** Tasks that run or are assigned, that wait for whatever reason, whose result is in memory, that failed. */
export function taskCounts(tasks: DaskTasks): { running: number; waiting: number; inMemory: number; failed: number } {
  return {
    running: tasks.processing,
    waiting: tasks.waiting + tasks.queued + tasks.unrunnable,
    inMemory: tasks.in_memory,
    failed: tasks.erred
  };
}

export function workerCounts(dask: DaskView | null): { running: number; coming: number; threads: number } {
  const workers = dask?.workers ?? [];
  const running = workers.filter(worker => worker.state === 'running');
  return {
    running: running.length,
    coming: workers.filter(worker => worker.state === 'starting').length,
    threads: running.reduce((sum, worker) => sum + worker.nthreads, 0)
  };
}

/** How a map goes, as a line: what failed, what runs, how fast, how long still, what it has cost. */
export function progressWords({ map, spent_nusd }: MapNow, perS: number, words: Words, currency: Currency): string {
  const left = map.count - ended(map);
  const isRunning = map.state === 'running';
  const seated = map.seats.filter(seat => seat.state === 'ready' || seat.state === 'silent').length;
  const parts = [
    ...(map.failed > 0 ? [words.__('%1 failed', map.failed)] : []),
    ...(map.poisoned > 0 ? [words.__('%1 poisoned', map.poisoned)] : []),
    ...(isRunning ? [words.__('%1 at work on %2', map.running, words._n('%1 node', '%1 nodes', seated))] : []),
    ...(map.checks > 0 ? [words.__('%1 of %2 run again to verify', map.checked, map.checks)] : []),
    ...(isRunning && perS > 0 ? [speed(perS, words), words.__('%1 left', duration((left / perS) * 1000 + 999))] : []),
    isRunning ? words.__('%1 so far', money(spent_nusd, currency)) : money(spent_nusd, currency)
  ];
  return parts.join(' · ');
}

function speed(perS: number, words: Words): string {
  const [amount, unit] = perS >= 1 ? [perS, words.__('s')] : perS * 60 >= 1 ? [perS * 60, words.__('min')] : [perS * 3600, words.__('h')];
  return `${Number(amount.toPrecision(2))}/${unit}`;
}

export function mapState({ state, failed, poisoned }: MapView, words: Words): string {
  switch (state) {
    case 'running':
      return words.__('runs');
    case 'stopped':
      return words.__('stopped; it can be resumed');
    default:
      return failed + poisoned > 0 ? words.__('done, with errors') : words.__('done');
  }
}

export function mapMood({ state, failed, poisoned, seats }: MapView): Mood {
  if (failed + poisoned > 0 || (state === 'running' && seats.some(seat => seat.state === 'silent' || seat.state === 'refused'))) {
    return 'warn';
  }
  return state === 'running' ? 'wait' : state === 'done' ? 'good' : 'off';
}

const PACE_MS = 30_000;

/** How fast maps go: items a second over the last half minute of looks. */
export class Pace {
  private readonly seen = new Map<string, (readonly [number, number])[]>();

  take({ at_ms: at, maps }: FanOut): void {
    const there = new Set(maps.map(one => one.map.map_id));
    for (const id of [...this.seen.keys()]) {
      if (!there.has(id)) {
        this.seen.delete(id);
      }
    }
    for (const { map } of maps) {
      const before = (this.seen.get(map.map_id) ?? []).filter(([ms]) => ms > at - PACE_MS && ms < at);
      this.seen.set(map.map_id, [...before, [at, ended(map)]]);
    }
  }

  /** Items a second; until there are two looks, since its beginning. 0 when nothing has moved. */
  perS(map: MapView, atMs: number): number {
    const looks = this.seen.get(map.map_id) ?? [];
    const [first, last] = [looks[0], looks.at(-1)];
    if (first === undefined || last === undefined || first === last) {
      return atMs > map.began_ms ? (ended(map) * 1000) / (atMs - map.began_ms) : 0;
    }
    return Math.max(0, ((last[1] - first[1]) * 1000) / (last[0] - first[0]));
  }
}
