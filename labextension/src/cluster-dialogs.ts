/** Questions before a cluster grows, shrinks or ends, or a map is stopped. Asked whatever a command's arguments say. */
import { Dialog, showDialog } from '@jupyterlab/apputils';
import { html } from 'lit';
import type { TemplateResult } from 'lit';

import type { AimFields } from './dialog-values';
import { aimOf } from './dialog-values';
import type { Asking } from './dialogs';
import { Form, confirmed, field } from './dialogs';
import type { Aim, ClusterNow, MapNow } from './fanout';
import { aimWords, ended } from './fanout';
import { money, oneLine, rate, typedUsd } from './format';

/** An aim, and the budget of all nodes together where another one is wanted. */
export interface Sized {
  readonly aim: Aim;
  readonly budget: number | null;
}

/** A fixed number of nodes, or null when it was called off. */
export function askScale(cluster: ClusterNow, nodes: string, asking: Asking): Promise<Sized | null> {
  const { words } = asking;
  const given = { minimum: '', maximum: nodes || String(cluster.aim.maximum), price: '', finish: '' };
  const hint = words.__('now: %1', aimWords(cluster.aim, words, asking.currency));
  return asked(cluster, { ...given, budget: '' }, asking, {
    title: words.__('Scale cluster %1', oneLine(cluster.name, 60)),
    first: 'maximum',
    isFixed: true,
    fields: value => html`${field(words.__('Nodes'), 'maximum', value.maximum, hint)}`
  });
}

/** Limits between which the work decides, or null when it was called off. */
export function askAdapt(cluster: ClusterNow, given: Partial<AimFields>, asking: Asking): Promise<Sized | null> {
  const { words } = asking;
  const { aim } = cluster;
  const begin: AimFields = {
    minimum: given.minimum || String(Math.max(1, aim.minimum)),
    maximum: given.maximum || String(aim.maximum),
    price: given.price || (aim.max_nusd_hour === null ? '' : typedUsd(aim.max_nusd_hour)),
    finish: given.finish ?? '',
    budget: ''
  };
  return asked(cluster, begin, asking, {
    title: words.__('Adapt cluster %1', oneLine(cluster.name, 60)),
    first: 'minimum',
    isFixed: false,
    fields: value => html`${field(words.__('At least so many nodes'), 'minimum', value.minimum, words.__('they stay, also when idle'))}
      ${field(words.__('At most so many nodes'), 'maximum', value.maximum, words.__('rented when the waiting work is worth it'))}
      ${field(words.__('All together at most, dollars an hour'), 'price', value.price, words.__('empty: no limit but the budget'))}
      ${field(words.__('Done by'), 'finish', value.finish, words.__('a time of day such as 18:30; empty: no hurry'))}`
  });
}

interface Question {
  readonly title: string;
  readonly first: string;
  readonly isFixed: boolean;
  readonly fields: (value: AimFields) => TemplateResult;
}

async function asked(cluster: ClusterNow, begin: AimFields, asking: Asking, question: Question): Promise<Sized | null> {
  const { words, currency } = asking;
  let value: AimFields = { ...begin, budget: typedUsd(cluster.budget_nusd) };
  let problem = '';
  for (;;) {
    const body = html`<p>
        ${words.__('Its %1 cost %2 and have cost %3 of %4. New nodes are rented without a further question, within this one budget.', words._n('%1 node', '%1 nodes', cluster.leases.length), rate(cluster.rate_nusd_hour, currency, words), money(cluster.spent_nusd, currency), money(cluster.budget_nusd, currency))}
      </p>
      ${question.fields(value)}
      ${field(words.__('Budget of all nodes together, dollars'), 'budget', value.budget, words.__('agreed now: %1; ended nodes count', typedUsd(cluster.budget_nusd)))}
      <p role="alert" class="gm-Notice" ?hidden=${problem === ''}>${problem}</p>`;
    const answer = await showDialog({
      title: question.title,
      body: new Form(body),
      buttons: [Dialog.cancelButton({ label: words.__('Cancel') }), Dialog.okButton({ label: words.__('Do this and spend up to it') })],
      focusNodeSelector: `input[name="${question.first}"]`
    });
    if (!answer.button.accept || answer.value === null) {
      return null;
    }
    value = { ...value, ...answer.value };
    const found = aimOf(question.isFixed ? { ...value, minimum: value.maximum } : value, Date.now());
    if (typeof found !== 'string') {
      return { aim: found.aim, budget: found.budget_nusd === cluster.budget_nusd ? null : found.budget_nusd };
    }
    problem = {
      nodes: words.__('Write how many nodes as whole numbers from 1 to 1000, the most not below the least.'),
      price: words.__('Write a price like 6.50, or nothing.'),
      finish: words.__('Write a time of day like 18:30, or nothing.'),
      budget: words.__('Write an amount like 12.50.')
    }[found];
  }
}

export function askEnd(cluster: ClusterNow, nodeName: (lease: string) => string, { words, currency }: Asking): Promise<boolean> {
  const busy = cluster.dask?.tasks.processing ?? 0;
  const body = html`<ul>
      ${cluster.leases.slice(0, 20).map(lease => html`<li>${oneLine(nodeName(lease), 60)}</li>`)}
    </ul>
    <p>
      ${words.__('So far it cost %1. What is in memory and on disk there is lost. Billing ends when the marketplaces confirm.', money(cluster.spent_nusd, currency))}
    </p>
    ${busy > 0 ? html`<p class="gm-Notice">${words._n('%1 task is at work and is ended.', '%1 tasks are at work and are ended.', busy)}</p>` : ''}`;
  const count = words._n('%1 node', '%1 nodes', cluster.leases.length);
  const title = words.__('Give cluster %1 back, %2?', oneLine(cluster.name, 60), count);
  return confirmed(title, body, words.__('Release cluster'), words);
}

export function askStop({ map }: MapNow, { words }: Asking): Promise<boolean> {
  const body = html`<p>
    ${words.__('%1 of %2 items have ended and are kept; %3 at work are ended. A cell with %4 goes on with the others.', ended(map), map.count, map.running, '--resume')}
  </p>`;
  return confirmed(words.__('Stop map %1?', oneLine(map.label, 60) || words.__('over %1', oneLine(map.item_name, 40))), body, words.__('Stop map'), words);
}
