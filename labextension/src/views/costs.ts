/** What was spent: the sum, a chart with a table twin, sums by key, budgets, files to take away. Properties in, wishes out. */
import { html, nothing, svg } from 'lit';
import type { TemplateResult } from 'lit';

import type { Span, Sum } from '../costs';
import { money, oneLine, percent, shortPath } from '../format';
import type { By, Period } from '../layout';
import { GROUPS, PERIODS } from '../layout';
import type { BudgetView, ExportFormat } from '../types';
import type { Manner } from './parts';
import { budgetBar, button, empty, loading } from './parts';

export interface CostsWishes {
  period(period: Period): void;
  by(by: By): void;
  exportAs(format: ExportFormat): void;
  setBudget(view: BudgetView | null): void;
}

export interface CostsProps extends Manner {
  readonly isKnown: boolean;
  readonly problem: string;
  readonly period: Period;
  readonly by: By;
  readonly span: Span;
  readonly total: Sum;
  readonly bars: readonly Sum[];
  readonly groups: readonly Sum[];
  readonly budgets: readonly BudgetView[];
  readonly wishes: CostsWishes;
}

const FORMATS: readonly ExportFormat[] = ['csv', 'parquet', 'html'];
const PARTS = ['work', 'boot', 'idle', 'other'] as const;
type Part = (typeof PARTS)[number];

/** More rows than anybody reads; the rest is in the exported files. */
const MANY = 100;

export function costs(props: CostsProps): TemplateResult {
  const { words } = props;
  return html`${chooser(props)}
    ${props.problem !== '' ? html`<div class="gm-Banner" role="status">${props.problem}</div>` : nothing}
    ${props.isKnown ? sheet(props) : props.problem === '' ? loading(words) : nothing} ${budgets(props)}`;
}

function chooser(props: CostsProps): TemplateResult {
  const { words, wishes } = props;
  const names: Readonly<Record<Period, string>> = {
    today: words.__('Today'),
    week: words.__('7 days'),
    month: words.__('30 days')
  };
  return html`<div class="gm-Choice" role="group" aria-label=${words.__('Span of time')}>
    ${PERIODS.map(
      period =>
        html`<button type="button" class="gm-Button" aria-pressed=${period === props.period} @click=${() => wishes.period(period)}>
          ${names[period]}
        </button>`
    )}
  </div>`;
}

function sheet(props: CostsProps): TemplateResult {
  const { words, total } = props;
  if (total.amount === 0n) {
    return empty(words.__('Nothing was spent'), words.__('Costs of nodes and cells stand here as they come up.'));
  }
  return html`${sumUp(props)} ${chart(props)} ${grouped(props)} ${files(props)}`;
}

function partName(part: Part, props: CostsProps): string {
  const { words } = props;
  return { work: words.__('cells'), boot: words.__('boot'), idle: words.__('idle'), other: words.__('other') }[part];
}

function sumUp(props: CostsProps): TemplateResult {
  const { total, currency } = props;
  return html`<div class="gm-Total">
    <strong class="gm-Total-amount" role="status" aria-live="polite">${money(total.amount, currency)}</strong>
    <ul class="gm-Legend">
      ${PARTS.filter(part => total[part] > 0n).map(
        part =>
          html`<li>
            <span class="gm-Key" data-part=${part} aria-hidden="true"></span>${partName(part, props)}
            ${money(total[part], currency)} (${Math.round(percent(Number(total[part]), Number(total.amount)))} %)
          </li>`
      )}
    </ul>
  </div>`;
}

function moment(ms: number, stepMs: number): string {
  const iso = new Date(ms).toISOString();
  return stepMs < 24 * 3_600_000 ? `${iso.slice(11, 13)}:00` : iso.slice(5, 10);
}

const HIGH = 100;

function chart(props: CostsProps): TemplateResult {
  const { bars, words, currency, span } = props;
  const top = bars.reduce((most, bar) => (bar.amount > most ? bar.amount : most), 1n);
  const wide = 100 / bars.length;
  const parts = (bar: Sum, i: number): unknown => {
    let y = HIGH;
    return PARTS.filter(part => bar[part] > 0n).map(part => {
      const size = (Number(bar[part]) / Number(top)) * (HIGH - 2);
      y -= size;
      return svg`<rect data-part=${part} x=${(i + 0.1) * wide} y=${y} width=${wide * 0.8} height=${size}></rect>`;
    });
  };
  const label = words.__('Costs over time, at most %1 in one step; the table below says the same', money(top, currency));
  return html`<figure class="gm-Chart">
      <svg viewBox="0 0 100 ${HIGH}" preserveAspectRatio="none" role="img" aria-label=${label}>${bars.map(parts)}</svg>
      <figcaption>
        <span>${moment(span.sinceMs, span.stepMs)}</span><span>${words.__('at most %1', money(top, currency))}</span>
        <span>${moment(span.untilMs - span.stepMs, span.stepMs)} UTC</span>
      </figcaption>
    </figure>
    <details class="gm-Twin">
      <summary>${words.__('The chart as a table')}</summary>
      ${table(
        [words.__('From (UTC)'), ...PARTS.map(part => partName(part, props)), words.__('Sum')],
        bars
          .filter(bar => bar.amount > 0n)
          .map(bar => [moment(Number(bar.key), span.stepMs), ...PARTS.map(part => money(bar[part], currency)), money(bar.amount, currency)])
      )}
    </details>`;
}

function table(
  heads: readonly string[],
  rows: readonly (readonly string[])[],
  titles: readonly string[] = []
): TemplateResult {
  return html`<div class="gm-Scroll" tabindex="0" role="region" aria-label=${heads[0] ?? ''}>
    <table class="gm-Grid">
      <thead>
        <tr>${heads.map(head => html`<th scope="col">${head}</th>`)}</tr>
      </thead>
      <tbody>
        ${rows.map(
          (row, at) =>
            html`<tr>${row.map((cell, i) => (i === 0 ? html`<th scope="row" title=${titles[at] ?? cell}>${cell}</th>` : html`<td>${cell}</td>`))}</tr>`
        )}
      </tbody>
    </table>
  </div>`;
}

function byName(by: By, props: CostsProps): string {
  const { words } = props;
  return {
    notebook: words.__('Notebook'),
    user: words.__('User'),
    project: words.__('Project'),
    marketplace: words.__('Marketplace'),
    gpu: words.__('GPU')
  }[by];
}

function grouped(props: CostsProps): TemplateResult {
  const { words, currency, groups, by, wishes } = props;
  const chosen = (event: Event): void => {
    const value = (event.target as HTMLSelectElement).value;
    const found = GROUPS.find(group => group === value);
    if (found !== undefined) {
      wishes.by(found);
    }
  };
  const rows = groups
    .slice(0, MANY)
    .map(sum => [
      oneLine(by === 'notebook' ? shortPath(sum.key) : sum.key, 80) || words.__('(not told)'),
      money(sum.amount, currency),
      `${Math.round(percent(Number(sum.idle), Number(sum.amount)))} %`,
      `${Math.round(percent(Number(sum.boot), Number(sum.amount)))} %`
    ]);
  return html`<label class="gm-By"
      >${words.__('By')}
      <select class="gm-Select" @change=${chosen} aria-label=${words.__('Sums by')}>
        ${GROUPS.map(group => html`<option value=${group} ?selected=${group === by}>${byName(group, props)}</option>`)}
      </select></label
    >
    ${table([byName(by, props), words.__('Cost'), words.__('idle'), words.__('boot')], rows, groups.map(sum => oneLine(sum.key, 300)))}
    ${groups.length > MANY
      ? html`<p class="gm-Dim">${words.__('The dearest %1 of %2; an exported file has all.', MANY, groups.length)}</p>`
      : nothing}`;
}

function files(props: CostsProps): TemplateResult {
  const { words, wishes } = props;
  const names: Readonly<Record<ExportFormat, string>> = { csv: 'CSV', parquet: 'Parquet', html: 'HTML' };
  return html`<div class="gm-Actions" role="group" aria-label=${words.__('Export')}>
    <span class="gm-Dim">${words.__('Export')}</span>
    ${FORMATS.map(format => button(names[format], () => wishes.exportAs(format), { title: words.__('Save these costs as %1', names[format]) }))}
  </div>`;
}

function budgets(props: CostsProps): TemplateResult {
  const { words, wishes, currency } = props;
  return html`<section class="gm-Budgets" aria-label=${words.__('Budgets')}>
    <header class="gm-Card-head">
      <h3>${words.__('Budgets')}</h3>
      ${button(words.__('Set a budget…'), () => wishes.setBudget(null))}
    </header>
    ${props.budgets.length === 0
      ? html`<p class="gm-Dim">${words.__('No budget is set. Each rental has its own limit all the same.')}</p>`
      : props.budgets.map(view => {
          const { scope, key, limit_nusd } = view.budget;
          const name = `${scopeName(scope, props)} ${oneLine(scope === 'notebook' ? shortPath(key) : key, 60)}`;
          return html`<div class="gm-Budget">
            <div class="gm-Card-head">
              <span>${name}</span>
              ${button(words.__('Change…'), () => wishes.setBudget(view), { title: words.__('Change the budget of %1', name) })}
            </div>
            ${budgetBar(BigInt(view.spent_nusd), BigInt(limit_nusd), name, props)}
            ${view.reserved_nusd > 0
              ? html`<p class="gm-Dim">${words.__('%1 more reserved for what is rented', money(view.reserved_nusd, currency))}</p>`
              : nothing}
          </div>`;
        })}
  </section>`;
}

function scopeName(scope: string, props: CostsProps): string {
  const { words } = props;
  const names: Readonly<Record<string, string>> = {
    cell: words.__('Cell'),
    notebook: words.__('Notebook'),
    user: words.__('User'),
    project: words.__('Project')
  };
  return names[scope] ?? scope;
}
