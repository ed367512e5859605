/** The filters: search, price, memory, models, marketplaces, place, trust, kind, and the job whose price is shown. */
import { html, type TemplateResult } from 'lit';
import { gib, money, oneLine } from '../format';
import type { OffersModel } from '../offers/model';
import { TIERS, type Filters, type Kind, type OffersState } from '../offers/state';
import {
  groupName, kindName, priceBinsOf, priceFilterOf, rangeWords, tierName, vramBinsOf, vramFilterOf
} from '../offers/words';
import { chips, type Chip } from './chips';
import type { Manner } from './parts';
import { range } from './range';

export interface FiltersProps extends Manner {
  model: OffersModel;
  /** Whether all models are listed as chips, or the most frequent ones. */
  allModels: boolean;
  onFilter(change: Partial<Filters>): void;
  onState(change: Partial<OffersState>): void;
  onAllModels(all: boolean): void;
}

const FEW_MODELS = 8;

/** All filters, one below the other. */
export function filters(props: FiltersProps): TemplateResult {
  return html`${priceRange(props)} ${vramRange(props)} ${modelChips(props)} ${marketChips(props)} ${choices(props)}
  ${job(props)}`;
}

/** The search field; it is shown also while the other filters are folded away. */
export function search({ model, words, onFilter }: FiltersProps): TemplateResult {
  const { text } = model.state.filters;
  return html`<input
    class="gm-Input gm-Offers-search"
    type="search"
    .value=${text}
    placeholder=${words.__('Search, or H100:80GB:2')}
    aria-label=${words.__('Search offers: words, or a request such as H100:80GB:2')}
    title=${words.__('Words, or a request: names:memory:count, such as H100|A100:80GB:2')}
    autocomplete="off"
    spellcheck="false"
    @input=${(event: Event) => onFilter({ text: (event.target as HTMLInputElement).value })}
  />`;
}

function priceRange({ model, words, currency, onFilter }: FiltersProps): TemplateResult {
  const { filters } = model.state;
  const [low, high] = priceBinsOf(filters);
  const lowText = filters.priceLow === null ? null : money(filters.priceLow, currency);
  const highText = filters.priceHigh === null ? null : money(filters.priceHigh, currency);
  return range({
    id: 'price',
    label: words.__('Price an hour'),
    shown: rangeWords(lowText, highText, words),
    bins: model.found.priceBins,
    low,
    high,
    lowName: words.__('Lowest price an hour'),
    highName: words.__('Highest price an hour'),
    lowText: lowText ?? words.__('any'),
    highText: highText ?? words.__('any'),
    onChange: (from, to) => onFilter(priceFilterOf(from, to))
  });
}

function vramRange({ model, words, onFilter }: FiltersProps): TemplateResult {
  const { filters } = model.state;
  const [low, high] = vramBinsOf(filters);
  const lowText = filters.vramLow === null ? null : gib(filters.vramLow);
  const highText = filters.vramHigh === null ? null : gib(filters.vramHigh);
  return range({
    id: 'vram',
    label: words.__('GPU memory'),
    shown: rangeWords(lowText, highText, words),
    bins: model.found.vramBins,
    low,
    high,
    lowName: words.__('Least memory a GPU'),
    highName: words.__('Most memory a GPU'),
    lowText: lowText ?? words.__('any'),
    highText: highText ?? words.__('any'),
    onChange: (from, to) => onFilter(vramFilterOf(from, to))
  });
}

function modelChips({ model, words, allModels, onFilter, onAllModels }: FiltersProps): TemplateResult {
  const { names } = model.table.texts.gpu;
  const chosen = model.state.filters.models;
  const all = counted(names, model.found.models, model.totals.models, chosen, name => groupName(name, words));
  const shown = allModels ? all : all.filter((chip, i) => i < FEW_MODELS || chip.isOn);
  const more = all.length - shown.length;
  return html`<div class="gm-Field">
    <span class="gm-Field-name">${words.__('GPU models')}</span>
    ${chips({
      label: words.__('GPU models'),
      chips: shown,
      onToggle: name => onFilter({ models: toggled(chosen, name) })
    })}
    ${more > 0 || allModels
      ? html`<button type="button" class="gm-Link" @click=${() => onAllModels(!allModels)}>
          ${allModels ? words.__('Fewer models') : words._n('%1 more model', '%1 more models', more)}
        </button>`
      : ''}
  </div>`;
}

function marketChips({ model, words, onFilter }: FiltersProps): TemplateResult {
  const chosen = model.state.filters.marketplaces;
  const { names } = model.table.texts.marketplace;
  const all = counted(names, model.found.marketplaces, model.totals.marketplaces, chosen, name => oneLine(name, 30));
  return html`<div class="gm-Field">
    <span class="gm-Field-name">${words.__('Marketplaces')}</span>
    ${chips({
      label: words.__('Marketplaces'),
      chips: all,
      onToggle: name => onFilter({ marketplaces: toggled(chosen, name) })
    })}
  </div>`;
}

/**
 * Chips, the most frequent first whatever is filtered, so that none moves under the pointer. A chosen name that is not
 * listed now keeps its chip, so that it can be unchosen.
 */
function counted(
  names: readonly string[],
  counts: Uint32Array,
  totals: Uint32Array,
  chosen: readonly string[],
  label: (name: string) => string
): Chip[] {
  const chip = (name: string, count: number): Chip => ({ value: name, label: label(name), count, isOn: chosen.includes(name) });
  const order = names.map((_, code) => code).filter(code => totals[code]! > 0);
  order.sort((one, other) => totals[other]! - totals[one]! || one - other);
  const gone = chosen.filter(name => !names.includes(name));
  return [...order.map(code => chip(names[code]!, counts[code]!)), ...gone.map(name => chip(name, 0))];
}

function choices({ model, words, onFilter }: FiltersProps): TemplateResult {
  const { region, tier, kind } = model.state.filters;
  const samples = model.sampleCount;
  return html`<div class="gm-Fields">
    <label class="gm-Field">
      <span class="gm-Field-name">${words.__('Region')}</span>
      <input
        class="gm-Input"
        type="text"
        .value=${region}
        placeholder=${words.__('anywhere')}
        autocomplete="off"
        @input=${(event: Event) => onFilter({ region: (event.target as HTMLInputElement).value })}
      />
    </label>
    ${select(words.__('Trust'), tier, ['', ...TIERS], name => (name ? words.__('%1 or better', tierName(name, words)) : words.__('any')), value =>
      onFilter({ tier: value })
    )}
    ${select(words.__('Kind'), kind, ['', 'on_demand', 'spot'], name => (name ? kindName(name, words) : words.__('any')), value =>
      onFilter({ kind: value as Kind })
    )}
  </div>
  ${samples > 0 && samples < model.table.count
    ? html`<label class="gm-Check">
        <input
          type="checkbox"
          .checked=${model.state.filters.samples}
          @change=${(event: Event) => onFilter({ samples: (event.target as HTMLInputElement).checked })}
        />
        ${words._n('also %1 that cannot be rented here', 'also %1 that cannot be rented here', samples)}
      </label>`
    : ''}`;
}

function job({ model, words, onState }: FiltersProps): TemplateResult {
  const { job } = model.state;
  const field = (name: string, value: number, min: string, key: 'hours' | 'inGib' | 'outGib'): TemplateResult => html`<label
    class="gm-Field"
  >
    <span class="gm-Field-name">${name}</span>
    <input
      class="gm-Input"
      type="number"
      min=${min}
      step="any"
      inputmode="decimal"
      .value=${String(value)}
      @change=${(event: Event) => {
        const input = event.target as HTMLInputElement;
        onState({ job: { ...job, [key]: input.valueAsNumber } });
        // What was typed and is no such figure is put back to what counts.
        input.value = String(model.state.job[key]);
      }}
    />
  </label>`;
  return html`<fieldset class="gm-Job">
    <legend>${words.__('My job')}</legend>
    <div class="gm-Fields">
      ${field(words.__('Hours'), job.hours, '0.1', 'hours')} ${field(words.__('GiB in'), job.inGib, '0', 'inGib')}
      ${field(words.__('GiB out'), job.outGib, '0', 'outGib')}
    </div>
  </fieldset>`;
}

/** A drop-down list with its label. */
export function select(
  label: string,
  value: string,
  values: readonly string[],
  name: (value: string) => string,
  act: (value: string) => void
): TemplateResult {
  return html`<label class="gm-Field">
    <span class="gm-Field-name">${label}</span>
    <select class="gm-Input" @change=${(event: Event) => act((event.target as HTMLSelectElement).value)}>
      ${values.map(one => html`<option value=${one} ?selected=${one === value}>${name(one)}</option>`)}
    </select>
  </label>`;
}

/** How many kinds of filters are set, for the button that folds them. */
export function countFilters(filters: Filters): number {
  return [
    filters.priceLow !== null || filters.priceHigh !== null,
    filters.vramLow !== null || filters.vramHigh !== null,
    filters.models.length > 0,
    filters.marketplaces.length > 0,
    filters.region,
    filters.tier,
    filters.kind,
    filters.samples
  ].filter(Boolean).length;
}

function toggled(chosen: readonly string[], name: string): string[] {
  return chosen.includes(name) ? chosen.filter(one => one !== name) : [...chosen, name];
}

