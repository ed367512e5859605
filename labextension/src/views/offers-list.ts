/** The list of offers: a summary, the order, and as many lines as can be seen; all others are empty space. */
import { html, nothing, type TemplateResult } from 'lit';
import { age, money, oneLine, rate } from '../format';
import { textAt } from '../offers/columns';
import { jobPrice } from '../offers/job';
import { windowOf, type OffersModel } from '../offers/model';
import { savingAt } from '../offers/order';
import { SORTS, type OffersState, type Sort } from '../offers/state';
import {
  ageShort, gpusName, groupName, kindName, memoryName, placeName, savingName, sentence, sortName
} from '../offers/words';
import { select } from './offers-filters';
import { button, empty, loading, type Manner } from './parts';

export interface ListProps extends Manner {
  model: OffersModel;
  /** Makes ids unique where several lists are on one page. */
  id: string;
  nowMs: number;
  isWide: boolean;
  scrollPx: number;
  viewPx: number;
  /** The line that keys act on, or -1. */
  active: number;
  isLoading: boolean;
  trouble: string;
  /** What a screen reader is told, once things have settled. */
  said: string;
  onState(change: Partial<OffersState>): void;
  onScroll(scrollPx: number): void;
  onKey(event: KeyboardEvent): void;
  onLine(line: number): void;
  onRefresh(): void;
  onClear(): void;
  onFilter(change: Partial<OffersState['filters']>): void;
}

export const LINE_PX = 64;
export const WIDE_LINE_PX = 32;

/** Everything right of, or below, the filters. */
export function list(props: ListProps): TemplateResult {
  return html`${bar(props)} ${samplesOnly(props)} ${troubles(props)} ${props.isWide && props.model.lines.count > 0 ? heads(props) : ''} ${body(props)}
    <div class="gm-Said" role="status" aria-live="polite">${props.said}</div>`;
}

/** How many there are, from which price on, how old. */
export function summary({ model, words, currency }: ListProps | (Manner & { model: OffersModel })): string {
  const { count, rows } = model.found;
  const all = model.totals.count;
  let least = Infinity;
  const prices = model.table.numbers.price_nusd_hour;
  for (let i = 0; i < count; i++) {
    least = Math.min(least, prices[rows[i]!]!);
  }
  const number = (n: number): string => n.toLocaleString('en');
  const found = count === all ? words._n('%1 offer', '%1 offers', all) : words.__('%1 of %2 offers', number(count), number(all));
  return count === 0 ? found : words.__('%1 from %2', count === all && all > 1 ? words.__('%1 offers', number(all)) : found, rate(least, currency, words));
}

function bar(props: ListProps): TemplateResult {
  const { model, words, nowMs, onState, isLoading } = props;
  const { sort, descending, grouped } = model.state;
  const old = model.table.asOfMs ? age(Math.max(0, nowMs - model.table.asOfMs), words) : '';
  return html`<div class="gm-Offers-bar">
    <div class="gm-Offers-summary">
      <span>${summary(props)}</span>
      <span class="gm-Dim">${isLoading ? words.__('asking…') : old}</span>
    </div>
    <div class="gm-Offers-order">
      ${select(words.__('Order by'), sort, SORTS, one => sortName(one as Sort, words), value => onState({ sort: value as Sort }))}
      <button
        type="button"
        class="gm-Button"
        aria-pressed=${descending ? 'true' : 'false'}
        aria-label=${words.__('Worst first')}
        title=${words.__('Worst first')}
        @click=${() => onState({ descending: !descending })}
      >
        ${descending ? '↓' : '↑'}
      </button>
      <label class="gm-Check">
        <input type="checkbox" .checked=${grouped} @change=${(event: Event) => onState({ grouped: (event.target as HTMLInputElement).checked })} />
        ${words.__('by model')}
      </label>
    </div>
  </div>`;
}

/** Marketplaces that do not answer: the list goes on without them, and says so. */
function troubles({ model, words, trouble, onRefresh }: ListProps): TemplateResult | '' {
  const failing = model.table.statuses.filter(status => !status.ok);
  if (trouble && model.table.count > 0) {
    return html`<div class="gm-Banner" role="alert">${oneLine(trouble, 300)} ${button(words.__('Try again'), onRefresh)}</div>`;
  }
  if (failing.length === 0 || model.table.count === 0) {
    return '';
  }
  return html`<details class="gm-Banner">
    <summary>
      ${words._n('%1 marketplace does not answer', '%1 marketplaces do not answer', failing.length)}
    </summary>
    <ul>
      ${failing.map(status => html`<li>${oneLine(status.marketplace, 30)}: ${oneLine(status.message, 300)}</li>`)}
    </ul>
  </details>`;
}

/** Where nothing on the list can be rented, that is said before anybody tries. */
function samplesOnly({ model, words }: ListProps): TemplateResult | '' {
  return model.table.count > 0 && model.sampleCount === model.table.count
    ? html`<div class="gm-Banner">
        ${words.__('These are samples of markets: none can be rented here. Set up a marketplace, or start `jupyter gpumarket demo` in a terminal.')}
      </div>`
    : '';
}

function heads({ words }: ListProps): TemplateResult {
  return html`<div class="gm-Line gm-Line-heads" aria-hidden="true">
    <span class="gm-Line-gpu">${words.__('GPU')}</span><span class="gm-Line-memory">${words.__('memory')}</span>
    <span class="gm-Line-where">${words.__('marketplace, place')}</span>
    <span class="gm-Line-age">${words.__('age')}</span><span class="gm-Line-saving">${words.__('saving')}</span>
    <span class="gm-Line-total">${words.__('my job')}</span><span class="gm-Line-price">${words.__('an hour')}</span>
  </div>`;
}

function body(props: ListProps): TemplateResult {
  const { model, words, isLoading, trouble } = props;
  if (model.table.count === 0) {
    if (trouble) {
      return empty(words.__('The offers could not be read'), oneLine(trouble, 600), button(words.__('Try again'), props.onRefresh));
    }
    return isLoading || model.table.asOfMs === 0 ? loading(words) : nothingOffered(props);
  }
  return model.lines.count === 0 ? nothingFits(props) : lines(props);
}

function nothingOffered({ model, words, onRefresh }: ListProps): TemplateResult {
  const { statuses } = model.table;
  if (statuses.length === 0) {
    return empty(
      words.__('No marketplace is set up'),
      words.__('In a terminal, `jupyter gpumarket demo` starts one on this computer, to try everything without spending; `jupyter gpumarket doctor` tells how to set up others.'),
      button(words.__('Look again'), onRefresh)
    );
  }
  const why = statuses.map(status => `${oneLine(status.marketplace, 30)}: ${oneLine(status.message, 300) || words.__('no offers')}`);
  return empty(words.__('Nothing is offered now'), why.join('; '), button(words.__('Ask again'), onRefresh));
}

/** Says which single filter keeps offers away, and takes it off with one click. */
function nothingFits({ model, words, onFilter, onClear }: ListProps): TemplateResult {
  const { found } = model;
  const { filters } = model.state;
  const sum = (counts: Uint32Array): number => counts.reduce((all, one) => all + one, 0);
  const ways: [boolean, string, number, Partial<OffersState['filters']>][] = [
    [filters.priceLow !== null || filters.priceHigh !== null, words.__('Any price'), sum(found.priceBins), { priceLow: null, priceHigh: null }],
    [filters.vramLow !== null || filters.vramHigh !== null, words.__('Any memory'), sum(found.vramBins), { vramLow: null, vramHigh: null }],
    [filters.models.length > 0, words.__('Any model'), sum(found.models), { models: [] }],
    [filters.marketplaces.length > 0, words.__('Any marketplace'), sum(found.marketplaces), { marketplaces: [] }]
  ];
  return empty(
    words.__('No offer passes all filters'),
    words.__('Loosen one of them:'),
    html`<div class="gm-Buttons">
      ${ways
        .filter(([isSet, , count]) => isSet && count > 0)
        .map(([, name, count, change]) => button(`${name} (${count})`, () => onFilter(change)))}
      ${button(words.__('Clear all filters'), onClear)}
    </div>`
  );
}

function lines(props: ListProps): TemplateResult {
  const { model, words, isWide, scrollPx, viewPx, active, id } = props;
  const { lines: all } = model;
  const linePx = isWide ? WIDE_LINE_PX : LINE_PX;
  const window = windowOf(scrollPx, viewPx, linePx, all.count);
  const seen = Array.from({ length: window.last - window.first }, (_, i) => window.first + i);
  const isActiveThere = active >= window.first && active < window.last;
  return html`<div
    class="gm-Offers-list"
    role=${model.state.grouped ? 'tree' : 'listbox'}
    aria-label=${words.__('Offers')}
    tabindex="0"
    data-lm-suppress-shortcuts="true"
    aria-activedescendant=${isActiveThere ? `${id}-line-${active}` : nothing}
    @scroll=${(event: Event) => props.onScroll((event.currentTarget as HTMLElement).scrollTop)}
    @keydown=${props.onKey}
  >
    <div role="presentation" class="gm-Offers-space" style="height:${window.heightPx}px">
      ${seen.map(place => line(props, place, linePx))}
    </div>
  </div>`;
}

function line(props: ListProps, place: number, linePx: number): TemplateResult {
  const at = props.model.lines.at[place]!;
  return at < 0 ? groupLine(props, place, -1 - at, linePx) : offerLine(props, place, at, linePx);
}

function groupLine({ model, words, currency, id, active, onLine }: ListProps, place: number, group: number, linePx: number): TemplateResult {
  const { name, count, cheapest, isOpen } = model.lines.groups[group]!;
  return html`<div
    class="gm-Line gm-Line-group"
    id="${id}-line-${place}"
    role="treeitem"
    aria-level="1"
    aria-expanded=${isOpen ? 'true' : 'false'}
    aria-selected="false"
    aria-posinset=${group + 1}
    aria-setsize=${model.lines.groups.length}
    data-active=${place === active}
    style="top:${place * linePx}px;height:${linePx}px"
    @click=${() => onLine(place)}
  >
    <span class="gm-Line-gpu">${isOpen ? '▾' : '▸'} ${groupName(name, words)}</span>
    <span class="gm-Line-where gm-Dim">${words._n('%1 offer', '%1 offers', count)}</span>
    <span class="gm-Line-price">${words.__('from %1', rate(cheapest, currency, words))}</span>
  </div>`;
}

function offerLine(props: ListProps, place: number, row: number, linePx: number): TemplateResult {
  const { model, words, currency, id, active, nowMs, onLine, isWide } = props;
  const { table, state } = model;
  const { grouped } = state;
  const total = jobPrice(table, row, state.job);
  const saving = savingAt(table, row);
  const said = sentence(table, row, total, nowMs, words);
  const note = textAt(table, 'note', row);
  const marks = [placeName(table, row), textAt(table, 'kind', row) === 'spot' ? kindName('spot', words) : ''];
  return html`<div
    class="gm-Line"
    id="${id}-line-${place}"
    role=${grouped ? 'treeitem' : 'option'}
    aria-level=${grouped ? 2 : nothing}
    aria-selected=${row === model.selectedRow ? 'true' : 'false'}
    aria-posinset=${grouped ? nothing : place + 1}
    aria-setsize=${grouped ? nothing : model.lines.count}
    aria-label=${said}
    title=${said}
    data-active=${place === active}
    data-sample=${note !== ''}
    style="top:${place * linePx}px;height:${linePx}px"
    @click=${() => onLine(place)}
  >
    <span class="gm-Line-gpu">${gpusName(table, row, words)}</span>
    <span class="gm-Line-memory">${memoryName(table, row)}</span>
    <span class="gm-Line-where gm-Dim"
      >${[oneLine(textAt(table, 'marketplace', row), 30), ...marks].filter(mark => mark).join(' · ')}</span
    >
    <span class="gm-Line-age gm-Dim">${ageShort(table.numbers.seen_ms[row]!, nowMs, words)}</span>
    <span class="gm-Line-saving" data-good=${saving > 0}>${savingName(saving)}</span>
    <span class="gm-Line-total gm-Dim">${isWide ? money(total, currency) : words.__('job %1', money(total, currency))}</span>
    <span class="gm-Line-price">${rate(table.numbers.price_nusd_hour[row]!, currency, words)}</span>
  </div>`;
}
