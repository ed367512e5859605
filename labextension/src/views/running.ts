/** What is rented: one card for each lease, orphans above them, a summary on top. Properties in, wishes out. */
import { html, nothing } from 'lit';
import type { TemplateResult } from 'lit';
import { repeat } from 'lit/directives/repeat.js';

import type { ClusterNow, FanOut, MapNow } from '../fanout';
import { duration, money, ofGib, oneLine, rate, shortPath } from '../format';
import { PHASES, costNow, gpuWords, isEnding, mayBill, mood, stateWords, timeLeftMs } from '../leases';
import type { Use } from '../model';
import { busiest, memory } from '../model';
import type { LeaseView, Now, Orphan } from '../types';
import type { ClustersProps } from './clusters';
import { clusterHead, mapCard } from './clusters';
import { budgetBar, button, empty, loading, sparkline } from './parts';

/** What a user may wish for here; every one of these is a command. */
export interface RunningWishes {
  rent(): void;
  session(lease: string): void;
  log(lease: string): void;
  extend(lease: string): void;
  release(lease: string): void;
  releaseAll(): void;
  showAll(): void;
}

export interface RunningProps extends ClustersProps {
  readonly now: Now;
  /** Whether anything was seen yet. */
  readonly isKnown: boolean;
  /** Clusters and maps as last seen, and why they could not be read anew. */
  readonly fanOut: FanOut;
  readonly fanOutTrouble: string;
  readonly use: (lease: string) => Use | undefined;
  readonly areAllShown: boolean;
  readonly wishes: RunningWishes;
}

/** More cards than anybody reads; the rest is shown when asked for. */
const MANY = 50;

export function running(props: RunningProps): TemplateResult {
  const { now, words, wishes } = props;
  const orphans = now.orphans.filter(orphan => orphan.state !== 'gone');
  if (!props.isKnown) {
    return loading(words);
  }
  if (now.leases.length === 0 && orphans.length === 0 && props.fanOut.clusters.length === 0) {
    return empty(
      words.__('Nothing is rented'),
      words.__('Nothing bills now. Rent a GPU from the offers, or run a cell that begins with %1.', '%%gpu'),
      button(words.__('Find a GPU'), () => wishes.rent(), { kind: 'main' })
    );
  }
  const shown = props.areAllShown ? now.leases : now.leases.slice(0, MANY);
  const left = now.leases.length - shown.length;
  return html`
    ${summary(props)} ${orphans.map(orphan => orphanCard(orphan, props))}
    ${troubles(props)} ${repeat(groups(shown, props.fanOut.clusters), group => group.key, group => grouped(group, props))}
    ${left > 0
      ? button(words._n('Show %1 more', 'Show %1 more', left), () => wishes.showAll())
      : nothing}
  `;
}

/** What stands together: a cluster with its nodes, or nodes with one cluster process. */
export interface Group {
  readonly key: string;
  readonly cluster: ClusterNow | null;
  readonly leases: readonly LeaseView[];
}

/** Clusters first, also those that have no node yet and may rent; in each the nodes in the order in which they were rented. */
export function groups(leases: readonly LeaseView[], clusters: readonly ClusterNow[]): readonly Group[] {
  const found = new Map<string, { key: string; cluster: ClusterNow | null; leases: LeaseView[] }>();
  const keyOf = ({ lease }: LeaseView): string => lease.request.cluster || lease.cluster_id || lease.lease_id;
  for (const cluster of clusters) {
    found.set(cluster.cluster_id, { key: cluster.cluster_id, cluster, leases: [] });
  }
  for (const view of leases) {
    const key = keyOf(view);
    const group = found.get(key) ?? { key, cluster: null, leases: [] };
    found.set(key, group);
    group.leases.push(view);
  }
  return [...found.values()];
}

function troubles({ fanOut, fanOutTrouble, words }: RunningProps): readonly TemplateResult[] {
  const all = [...(fanOutTrouble === '' ? [] : [fanOutTrouble]), ...fanOut.troubles];
  return all.map(text => html`<p class="gm-Notice">${words.__('Maps are not known: %1', oneLine(text, 300))}</p>`);
}

function summary(props: RunningProps): TemplateResult {
  const { now, words, wishes, currency } = props;
  const count = now.leases.length;
  const nodes = words._n('%1 node', '%1 nodes', count);
  const hourly = rate(now.rate_nusd_hour, currency, words);
  const spent = words.__('%1 today', money(now.spent_today_nusd, currency));
  return html`<div class="gm-Summary">
    <span class="gm-Summary-main"><strong>${nodes}</strong> · ${hourly} · ${spent}</span>
    <span class="gm-Hidden" role="status" aria-live="polite">${words.__('%1, %2', nodes, hourly)}</span>
    ${count > 1
      ? button(words.__('Release all…'), () => wishes.releaseAll(), { kind: 'danger' })
      : nothing}
  </div>`;
}

function grouped({ cluster, leases }: Group, props: RunningProps): TemplateResult {
  const { words, currency } = props;
  const there = new Set([...leases.map(view => view.lease.lease_id), ...(cluster?.leases ?? [])]);
  const maps = props.fanOut.maps.filter((one: MapNow) => there.has(one.lease));
  const cards = html`${repeat(maps, one => one.map.map_id, one => mapCard(one, props))}
  ${repeat(leases, view => view.lease.lease_id, view => card(view, props))}`;
  if (cluster === null && leases.length === 1) {
    return cards;
  }
  const hourly = leases.reduce((sum, view) => sum + (mayBill(view) ? view.lease.price_nusd_hour : 0), 0);
  const title = words._n('Cluster of %1 node', 'Cluster of %1 nodes', leases.length);
  return html`<section class="gm-Cluster" aria-label=${cluster === null ? words.__('Cluster') : words.__('Cluster %1', oneLine(cluster.name, 60))}>
    ${cluster === null
      ? html`<h3 class="gm-Cluster-title">${title} · ${rate(hourly, currency, words)}</h3>`
      : html`<div class="gm-Cluster-head">${clusterHead(cluster, props)}</div>`}
    ${cards}
  </section>`;
}

function card(view: LeaseView, props: RunningProps): TemplateResult {
  const { words, currency } = props;
  const { lease } = view;
  const name = oneLine(lease.name, 60) || lease.lease_id;
  const cost = costNow(view, props.now.at_ms, props.nowMs);
  return html`<article class="gm-Card" data-mood=${mood(view)} data-lease=${lease.lease_id} aria-label=${name}>
    <header class="gm-Card-head">
      <h3>${name}</h3>
      <span class="gm-State" data-mood=${mood(view)}><span class="gm-Dot" aria-hidden="true"></span>${stateWords(lease.state, words)}</span>
    </header>
    <p class="gm-Dim gm-Card-what">${machineWords(view)} · ${ownerWords(view, props)}</p>
    ${lease.state === 'ready' || lease.state === 'unreachable' ? useOf(view, props) : phases(view, props)}
    <dl class="gm-Sums">
      <div><dt>${words.__('Rate')}</dt><dd>${rate(lease.price_nusd_hour, currency, words)}</dd></div>
      <div><dt>${words.__('Cost so far')}</dt><dd>${money(cost, currency)}</dd></div>
      <div><dt>${words.__('Time left')}</dt><dd>${timeLeft(view, props)}</dd></div>
    </dl>
    ${budgetBar(cost, BigInt(lease.request.budget_nusd), words.__('Budget of %1', name), props)}
    ${shares(view, props)}
    ${view.notices.map(notice => html`<p class="gm-Notice">${oneLine(notice, 300)}</p>`)}
    ${lease.reason !== '' && lease.state !== 'ready' ? html`<p class="gm-Notice">${oneLine(lease.reason, 300)}</p>` : nothing}
    ${actions(view, props)}
  </article>`;
}

function machineWords(view: LeaseView): string {
  const { offer } = view.lease;
  if (offer === null) {
    return '—';
  }
  const where = [offer.marketplace, offer.region].map(text => oneLine(text, 40)).filter(text => text !== '');
  return [gpuWords(offer), ...where].join(' · ');
}

function ownerWords(view: LeaseView, props: RunningProps): string {
  const { user, notebook, project } = view.lease.request.owner;
  const parts = [user, shortPath(notebook), project].map(text => oneLine(text, 60)).filter(text => text !== '');
  return parts.length > 0 ? parts.join(' · ') : props.words.__('no owner told');
}

function timeLeft(view: LeaseView, props: RunningProps): string {
  const left = timeLeftMs(view, props.nowMs);
  return left === null ? '—' : left === 0 ? props.words.__('over') : duration(left);
}

function useOf(view: LeaseView, props: RunningProps): TemplateResult {
  const { words } = props;
  const seen = props.use(view.lease.lease_id);
  if (seen === undefined) {
    return html`<p class="gm-Dim">${words.__('What it does is not told yet.')}</p>`;
  }
  const hasGpu = (view.node?.use?.gpus.length ?? 0) > 0;
  const [used, total] = memory(view);
  const working = view.node?.running.length ?? 0;
  const isFresh = view.node?.link === 'up';
  return html`<div class="gm-Use" data-fresh=${isFresh}>
    <div>
      <span>${hasGpu ? words.__('GPU') : words.__('CPU')}</span>
      ${sparkline(seen.gpu.list, hasGpu ? words.__('GPU use') : words.__('CPU use'))}
      <span class="gm-Number">${Math.round(busiest(view))} %</span>
    </div>
    <div>
      <span>${words.__('Memory')}</span>
      ${sparkline(seen.memory.list, words.__('Memory use'))}
      <span class="gm-Number">${ofGib(used, total)}</span>
    </div>
    <p class="gm-Dim">
      ${working === 0 ? words.__('No cell runs on it.') : words._n('%1 cell runs on it.', '%1 cells run on it.', working)}
      ${isFresh ? nothing : words.__('The link is %1: figures are old.', view.node?.link ?? '')}
    </p>
  </div>`;
}

/** How far a lease has come, with the time each phase took. */
function phases(view: LeaseView, props: RunningProps): TemplateResult {
  const { words } = props;
  const { lease } = view;
  if (isEnding(view)) {
    return html``;
  }
  const entered = PHASES.map(phase => lease.phases[phase]);
  const step = view.node?.steps.find(one => one.state === 'running');
  return html`<ol class="gm-Course" aria-label=${words.__('How far it is')}>
    ${PHASES.map((phase, i) => {
      const start = entered[i];
      const end = entered.slice(i + 1).find(ms => ms !== undefined);
      const isNow = phase === lease.state;
      const took = start === undefined ? '' : duration((isNow ? props.nowMs : (end ?? props.nowMs)) - start);
      const state = isNow ? 'now' : start === undefined ? 'later' : 'done';
      return html`<li data-state=${state} aria-current=${isNow ? 'step' : nothing}>
        <span>${phaseWord(phase, props)}</span> <span class="gm-Number">${took}</span>
      </li>`;
    })}
  </ol>
  ${step === undefined ? nothing : html`<p class="gm-Dim">${oneLine(step.name, 60)}: ${oneLine(step.detail, 120)}</p>`}
  ${lease.attempts.length > 0
    ? html`<p class="gm-Dim">
        ${words._n('%1 offer did not work out before', '%1 offers did not work out before', lease.attempts.length)}:
        ${oneLine(lease.attempts.at(-1)?.reason ?? '', 160)}
      </p>`
    : nothing}`;
}

function phaseWord(phase: string, props: RunningProps): string {
  const { words } = props;
  const names: Readonly<Record<string, string>> = {
    quoting: words.__('Quote'),
    renting: words.__('Contract'),
    booting: words.__('Boot'),
    linking: words.__('Link'),
    preparing: words.__('Set-up'),
    probing: words.__('Check'),
    ready: words.__('Ready')
  };
  return names[phase] ?? phase;
}

function shares(view: LeaseView, props: RunningProps): TemplateResult | typeof nothing {
  if (view.boot_nusd === 0 && view.idle_nusd === 0) {
    return nothing;
  }
  const { words, currency } = props;
  return html`<p class="gm-Dim">
    ${words.__('of that boot %1, idle %2', money(view.boot_nusd, currency), money(view.idle_nusd, currency))}
  </p>`;
}

function actions(view: LeaseView, props: RunningProps): TemplateResult {
  const { words, wishes } = props;
  const id = view.lease.lease_id;
  const ending = isEnding(view);
  const isThere = view.node !== null;
  return html`<div class="gm-Actions">
    ${button(words.__('Open session'), () => wishes.session(id), {
      title: words.__('Open its notebook, or a new one that runs on this node'),
      off: ending
    })}
    ${button(words.__('Log'), () => wishes.log(id), { title: words.__('Show what the node logs'), off: !isThere })}
    ${button(words.__('Extend…'), () => wishes.extend(id), { title: words.__('More time or budget'), off: ending })}
    ${button(ending ? words.__('Release again…') : words.__('Release…'), () => wishes.release(id), {
      title: words.__('Give it back: what is in its memory is lost'),
      kind: 'danger'
    })}
  </div>`;
}

function orphanCard(orphan: Orphan, props: RunningProps): TemplateResult {
  const { words, currency } = props;
  const price =
    orphan.price_nusd_hour === null ? words.__('price not told') : rate(orphan.price_nusd_hour, currency, words);
  const state =
    orphan.state === 'release_asked'
      ? words.__('release asked, not yet confirmed: may still bill')
      : words.__('found; it is given back by itself');
  return html`<article class="gm-Card" data-mood="bad" aria-label=${words.__('Orphan')}>
    <header class="gm-Card-head">
      <h3>${words.__('Orphan at %1', oneLine(orphan.marketplace, 40))}</h3>
      <span class="gm-State" data-mood="bad"><span class="gm-Dot" aria-hidden="true"></span>${state}</span>
    </header>
    <p>${words.__('Rental %1 carries our label and no lease knows it. It bills: %2.', oneLine(orphan.rental_id, 80), price)}</p>
    <p class="gm-Dim">${words.__('found %1 ago', duration(props.nowMs - orphan.found_ms))}</p>
  </article>`;
}
