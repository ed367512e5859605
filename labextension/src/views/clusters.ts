/** A cluster's head above the cards of its nodes, and maps with how far they are. Properties in, wishes out. */
import { html, nothing } from 'lit';
import type { TemplateResult } from 'lit';

import type { ClusterNow, DaskView, Decision, MapNow } from '../fanout';
import {
  aimWords,
  clusterMood,
  clusterState,
  deedWords,
  ended,
  mapMood,
  mapState,
  progressWords,
  taskCounts,
  workerCounts
} from '../fanout';
import { age, money, oneLine, rate } from '../format';
import type { Mood } from '../leases';
import type { Manner } from './parts';
import { budgetBar, button } from './parts';

export interface ClusterWishes {
  scale(cluster: string): void;
  adapt(cluster: string): void;
  endCluster(cluster: string): void;
  stopMap(map: string): void;
}

export interface ClustersProps extends Manner {
  /** The server's clock. */
  readonly nowMs: number;
  /** A lease's name by its id. */
  readonly nodeName: (lease: string) => string;
  readonly perS: (map: MapNow) => number;
  readonly clusterWishes: ClusterWishes;
}

const SHOWN_POISONED = 10;
const SHOWN_NOTICES = 5;

export function clusterHead(cluster: ClusterNow, props: ClustersProps): TemplateResult {
  const { words, currency } = props;
  const name = oneLine(cluster.name, 60);
  const { running, coming, threads } = workerCounts(cluster.dask);
  const wanted = aimWords(cluster.aim, words, currency);
  const head = cluster.dask?.head ? oneLine(props.nodeName(cluster.dask.head), 40) : words.__('none yet');
  return html`<header class="gm-Card-head">
      <h3>${words.__('Cluster %1', name)}</h3>
      ${stateOf(clusterMood(cluster), clusterState(cluster, words))}
    </header>
    <p class="gm-Dim gm-Card-what">${words.__('%1 ready, asked for: %2', cluster.nodes, wanted)}</p>
    <dl class="gm-Sums">
      ${fact(words.__('Head'), head, oneLine(cluster.dask?.head_reason ?? '', 200))}
      ${fact(words.__('Workers'), coming > 0 ? words.__('%1, and %2 starting', running, coming) : String(running))}
      ${fact(words.__('Threads'), String(threads))}
      ${fact(words.__('Rate'), rate(cluster.rate_nusd_hour, currency, words))}
      ${fact(words.__('Cost so far'), money(cluster.spent_nusd, currency))}
    </dl>
    ${cluster.dask === null ? nothing : tasks(cluster.dask, props)}
    ${budgetBar(BigInt(cluster.spent_nusd), BigInt(cluster.budget_nusd), words.__('Budget of cluster %1', name), props)}
    ${why(cluster, props)} ${notices(cluster, props)} ${clusterActions(cluster, props)}`;
}

/** A change of it is said to who cannot see it. */
function stateOf(mood: Mood, text: string): TemplateResult {
  return html`<span class="gm-State" role="status" data-mood=${mood}><span class="gm-Dot" aria-hidden="true"></span>${text}</span>`;
}

function fact(name: string, value: string, title = ''): TemplateResult {
  return html`<div><dt>${name}</dt><dd title=${title || nothing}>${value}</dd></div>`;
}

function tasks(dask: DaskView, { words }: ClustersProps): TemplateResult {
  const { running, waiting, inMemory, failed } = taskCounts(dask.tasks);
  return html`<dl class="gm-Sums gm-Tasks" aria-label=${words.__('Tasks')}>
    ${fact(words.__('Tasks run'), String(running))} ${fact(words.__('waiting'), String(waiting))}
    ${fact(words.__('in memory'), String(inMemory))} ${fact(words.__('failed'), String(failed))}
  </dl>`;
}

/** The latest decision with its reasons; the ones before it on demand. */
function why(cluster: ClusterNow, props: ClustersProps): TemplateResult | typeof nothing {
  const newest = [...cluster.decisions].reverse();
  const last = newest[0];
  if (last === undefined) {
    return nothing;
  }
  const { words } = props;
  const label = words.__('Why: %1', decided(last, props));
  return html`<details class="gm-Twin gm-Why">
    <summary>${label}</summary>
    <ol class="gm-List" aria-label=${words.__('Decisions about the size of %1, newest first', oneLine(cluster.name, 60))}>
      ${newest.map(
        one => html`<li class="gm-Row">
          <span>${decided(one, props)}</span>
          <span class="gm-Number gm-Dim">${age(props.nowMs - one.at_ms, words)}</span>
        </li>`
      )}
    </ol>
    ${cluster.dask?.head_reason
      ? html`<p class="gm-Dim">${words.__('Head: %1', oneLine(cluster.dask.head_reason, 300))}</p>`
      : nothing}
  </details>`;
}

function decided(decision: Decision, { words }: ClustersProps): string {
  const reasons = decision.reasons.map(reason => oneLine(reason, 240)).join('; ');
  const deed = deedWords(decision, words);
  return reasons === '' ? deed : `${deed}: ${reasons}`;
}

function notices({ notices: own, dask }: ClusterNow, { words }: ClustersProps): readonly TemplateResult[] {
  const poisoned = dask?.tasks.poisoned ?? [];
  const left = poisoned.length - SHOWN_POISONED;
  const all = [
    ...own.map(text => oneLine(text, 500)),
    ...(dask?.notices ?? []).slice(-SHOWN_NOTICES).map(text => oneLine(text, 300)),
    ...poisoned
      .slice(0, SHOWN_POISONED)
      .map(key => words.__('Poisoned: the task %1 ended several workers, and was given up.', oneLine(key, 120))),
    ...(left > 0 ? [words._n('%1 more task is poisoned.', '%1 more tasks are poisoned.', left)] : [])
  ];
  return all.map(text => html`<p class="gm-Notice">${text}</p>`);
}

function clusterActions({ name, is_ended }: ClusterNow, { words, clusterWishes }: ClustersProps): TemplateResult {
  return html`<div class="gm-Actions">
    ${button(words.__('Scale…'), () => clusterWishes.scale(name), {
      title: words.__('Have another number of nodes'),
      off: is_ended
    })}
    ${button(words.__('Adapt…'), () => clusterWishes.adapt(name), {
      title: words.__('Let the work decide, between limits in number and price'),
      off: is_ended
    })}
    ${button(is_ended ? words.__('Release cluster again…') : words.__('Release cluster…'), () => clusterWishes.endCluster(name), {
      title: words.__('Give all its nodes back: what is in their memory is lost'),
      kind: 'danger'
    })}
  </div>`;
}

export function mapCard(one: MapNow, props: ClustersProps): TemplateResult {
  const { words, currency } = props;
  const { map } = one;
  const name = oneLine(map.label, 60) || words.__('over %1', oneLine(map.item_name, 40));
  const [done, count] = [ended(map), map.count];
  const share = count > 0 ? (100 * done) / count : 100;
  const said = words.__('%1 of %2', done, count);
  return html`<article class="gm-Card gm-Map" data-mood=${mapMood(map)} data-map=${map.map_id} aria-label=${words.__('Map %1', name)}>
    <header class="gm-Card-head">
      <h3>${words.__('Map %1', name)}</h3>
      ${stateOf(mapMood(map), mapState(map, words))}
    </header>
    <div class="gm-Bar" data-level=${map.failed + map.poisoned > 0 ? 'warn' : 'ok'}>
      <div
        class="gm-Bar-track"
        role="progressbar"
        aria-label=${words.__('Items of map %1', name)}
        aria-valuemin="0"
        aria-valuemax=${count}
        aria-valuenow=${done}
        aria-valuetext=${said}
      >
        <div class="gm-Bar-fill" style="width: ${share.toFixed(1)}%"></div>
      </div>
      <span class="gm-Bar-text">${said}</span>
    </div>
    <p class="gm-Dim">${progressWords(one, props.perS(one), words, currency)} · ${oneLine(map.map_id, 40)}</p>
    ${map.reason === '' ? nothing : html`<p class="gm-Notice">${oneLine(map.reason, 300)}</p>`}
    ${map.state === 'running'
      ? html`<div class="gm-Actions">
          ${button(words.__('Stop map…'), () => props.clusterWishes.stopMap(map.map_id), {
            title: words.__('End it; what has ended of it is kept')
          })}
        </div>`
      : nothing}
  </article>`;
}
