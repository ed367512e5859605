/** Questions before something is spent or lost. Each is asked here, whatever a command's arguments say. */
import { Dialog, showDialog } from '@jupyterlab/apputils';
import { Widget } from '@lumino/widgets';
import { html, render } from 'lit';
import type { TemplateResult } from 'lit';

import { totals } from './dialog-values';
import { duration, money, oneLine, parseUsd, typedUsd } from './format';
import type { Currency } from './format';
import { gpuWords } from './leases';
import { useSheet } from './sheet';
import sheet from './style.css';
import type { BudgetSetting, LeaseView, Scope } from './types';
import type { Words } from './words';

export interface Asking {
  readonly words: Words;
  readonly currency: Currency;
}

/** A form of named fields; its value is what was typed into them. */
export class Form extends Widget implements Dialog.IBodyWidget<Readonly<Record<string, string>>> {
  constructor(body: TemplateResult) {
    super();
    useSheet('lab', sheet);
    this.addClass('gm-Root');
    this.addClass('gm-Form');
    render(body, this.node);
  }

  getValue(): Readonly<Record<string, string>> {
    const fields = this.node.querySelectorAll<HTMLInputElement | HTMLSelectElement>('[name]');
    return Object.fromEntries([...fields].map(field => [field.name, field.value]));
  }
}

export function field(label: string, name: string, value: string, hint: string): TemplateResult {
  return html`<label class="gm-Entry"
    ><span>${label}</span>
    <input class="jp-mod-styled" name=${name} .value=${value} autocomplete="off" />
    <small class="gm-Dim">${hint}</small></label
  >`;
}

export async function confirmed(title: string, body: TemplateResult, deed: string, words: Words): Promise<boolean> {
  const answer = await showDialog({
    title,
    body: new Form(body),
    buttons: [Dialog.cancelButton({ label: words.__('Keep it') }), Dialog.warnButton({ label: deed })],
    defaultButton: 0
  });
  return answer.button.accept;
}

export function askRelease(views: readonly LeaseView[], { words, currency }: Asking): Promise<boolean> {
  const busy = views.reduce((sum, view) => sum + (view.node?.running.length ?? 0), 0);
  const one = views.length === 1 ? views[0] : undefined;
  const title = one
    ? words.__('Give back %1?', oneLine(one.lease.name, 60))
    : words._n('Give back %1 node?', 'Give back all %1 nodes?', views.length);
  const body = html`<ul>
      ${views.slice(0, 20).map(
        view =>
          html`<li>${oneLine(view.lease.name, 60)}: ${gpuWords(view.lease.offer)}, ${money(view.cost_nusd, currency)}</li>`
      )}
    </ul>
    <p>${words.__('What is in memory and on disk there is lost. Billing ends when the marketplace confirms.')}</p>
    ${busy > 0
      ? html`<p class="gm-Notice">${words._n('%1 cell is running there and is ended.', '%1 cells are running there and are ended.', busy)}</p>`
      : ''}`;
  const deed = views.length > 1 ? words.__('Release all') : words.__('Release');
  return confirmed(title, body, deed, words);
}

/** The new totals, or null when it was called off. */
export async function askExtend(
  view: LeaseView,
  { words, currency }: Asking
): Promise<{ max_s?: number; budget_nusd?: number } | null> {
  const { request, name, price_nusd_hour: price } = view.lease;
  let [hours, budget, problem] = [String(Math.round(request.max_s / 36) / 100), typedUsd(request.budget_nusd), ''];
  for (;;) {
    const body = html`<p>
        ${words.__('It costs %1 an hour and has cost %2. Time and budget are both hard limits; whichever ends first counts.', money(price, currency), money(view.cost_nusd, currency))}
      </p>
      ${field(words.__('Hours in all'), 'hours', hours, words.__('agreed now: %1', duration(request.max_s * 1000)))}
      ${field(words.__('Budget in all, dollars'), 'budget', budget, words.__('agreed now: %1', typedUsd(request.budget_nusd)))}
      <p role="alert" class="gm-Notice" ?hidden=${problem === ''}>${problem}</p>`;
    const answer = await showDialog({
      title: words.__('Extend %1', oneLine(name, 60)),
      body: new Form(body),
      buttons: [Dialog.cancelButton({ label: words.__('Cancel') }), Dialog.okButton({ label: words.__('Extend and spend up to this') })],
      focusNodeSelector: 'input[name="hours"]'
    });
    if (!answer.button.accept || answer.value === null) {
      return null;
    }
    hours = answer.value['hours'] ?? '';
    budget = answer.value['budget'] ?? '';
    const wanted = totals(hours, budget);
    if (wanted !== null) {
      return wanted;
    }
    problem = words.__('Write hours like 4 or 2.5 and an amount like 12.50.');
  }
}

const SCOPES: readonly Scope[] = ['notebook', 'user', 'project'];

/** A budget as it shall be, or null when it was called off. An empty amount takes the limit away. */
export async function askBudget(given: Partial<BudgetSetting>, { words }: Asking): Promise<BudgetSetting | null> {
  let value: Readonly<Record<string, string>> = {
    scope: given.scope ?? 'user',
    key: given.key ?? '',
    limit: given.limit_nusd === undefined || given.limit_nusd === null ? '' : typedUsd(given.limit_nusd)
  };
  let problem = '';
  for (;;) {
    const names: Readonly<Record<string, string>> = {
      notebook: words.__('Notebook'),
      user: words.__('User'),
      project: words.__('Project')
    };
    const body = html`<label class="gm-Entry"
        ><span>${words.__('For')}</span>
        <select class="gm-Select" name="scope" aria-label=${words.__('For')}>
          ${SCOPES.map(scope => html`<option value=${scope} ?selected=${scope === value['scope']}>${names[scope]}</option>`)}
        </select></label
      >
      ${field(words.__('Name'), 'key', value['key'] ?? '', words.__('the notebook’s path, the user’s or the project’s name'))}
      ${field(words.__('Limit, dollars'), 'limit', value['limit'] ?? '', words.__('empty: no limit. At 100 % nodes are given back.'))}
      <p role="alert" class="gm-Notice" ?hidden=${problem === ''}>${problem}</p>`;
    const answer = await showDialog({
      title: words.__('Set a budget'),
      body: new Form(body),
      buttons: [Dialog.cancelButton({ label: words.__('Cancel') }), Dialog.okButton({ label: words.__('Set') })],
      focusNodeSelector: 'input[name="limit"]'
    });
    if (!answer.button.accept || answer.value === null) {
      return null;
    }
    value = answer.value;
    const limit = (value['limit'] ?? '').trim();
    const amount = limit === '' ? null : parseUsd(limit);
    const scope = SCOPES.find(one => one === value['scope']);
    const key = (value['key'] ?? '').trim();
    if (scope !== undefined && key !== '' && (limit === '' || amount !== null)) {
      return { scope, key, limit_nusd: amount };
    }
    problem = words.__('Write a name, and an amount like 12.50.');
  }
}
