/** Everything about one offer: what it costs and why, what the machine is, what is known of it. */
import { html, type TemplateResult } from 'lit';
import { duration, gib, money, oneLine, rate, usd } from '../format';
import type { Offer } from '../offers/columns';
import { priceParts, type PriceParts } from '../offers/job';
import type { OffersModel } from '../offers/model';
import { savingAt } from '../offers/order';
import {
  ageName, billingWords, gpusName, kindName, memoryName, ownWords, savingName, tierName
} from '../offers/words';
import { button, type Manner } from './parts';

export interface DetailsProps extends Manner {
  model: OffersModel;
  nowMs: number;
  onClose(): void;
  onRent(): void;
}

/** The drawer for the chosen offer; nothing when none is chosen. */
export function details(props: DetailsProps): TemplateResult | '' {
  const { model, words, onClose } = props;
  const offer = model.selectedOffer;
  if (offer === null) {
    return model.selected === '' ? '' : gone(props);
  }
  const title = `${gpusName(model.table, offer.row, words)} · ${memoryName(model.table, offer.row)}`;
  return html`<section
    class="gm-Details"
    tabindex="-1"
    aria-label=${words.__('Details of the chosen offer')}
    @keydown=${(event: KeyboardEvent) => closeOnEscape(event, onClose)}
  >
    <header class="gm-Details-head">
      <h3>${title}</h3>
      <button type="button" class="gm-Button" aria-label=${words.__('Close details')} @click=${onClose}>✕</button>
    </header>
    <div class="gm-Details-deal">
      <strong>${rate(offer.price_nusd_hour, props.currency, words)}</strong>
      ${offer.note
        ? html`<span class="gm-Dim">${oneLine(offer.note, 200)}</span>`
        : button(words.__('Rent…'), props.onRent, { kind: 'main' })}
    </div>
    ${price(props, offer)} ${facts(props, offer)}
  </section>`;
}

function gone({ words, onClose }: DetailsProps): TemplateResult {
  return html`<section class="gm-Details" aria-label=${words.__('Details of the chosen offer')}>
    <div class="gm-Details-deal">
      <span>${words.__('The chosen offer is not listed any more.')}</span>
      ${button(words.__('Close'), onClose)}
    </div>
  </section>`;
}

function price({ model, words, currency }: DetailsProps, offer: Offer): TemplateResult {
  const { job } = model.state;
  const parts = priceParts(model.table, offer.row, job);
  const baseline = model.table.baselines.get(offer.gpu);
  const saving = savingName(savingAt(model.table, offer.row));
  return html`<table class="gm-Table">
      <caption>
        ${words.__('My job: %1, %2 in, %3 out', duration(job.hours * 3_600_000), gib(job.inGib), gib(job.outGib))}
      </caption>
      <tbody>
        ${partNames(words)
          .filter(([key]) => key === 'time' || parts[key] > 0)
          .map(([key, name]) => html`<tr><th scope="row">${name}</th><td title=${usd(parts[key])}>${money(parts[key], currency)}</td></tr>`)}
        <tr class="gm-Table-sum">
          <th scope="row">${words.__('all in')}</th>
          <td title=${usd(parts.total)}>${money(parts.total, currency)}</td>
        </tr>
      </tbody>
    </table>
    <p class="gm-Dim">
      ${billingWords(offer.billing, currency, words)}
      ${offer.boot_s === null ? '' : words.__('A start of %1 is counted.', duration(offer.boot_s * 1000))}
      ${offer.native === null
        ? ''
        : words.__(
            'The marketplace asks %1 %2 an hour; 1 %2 is $%3 (%4).',
            oneLine(offer.native.amount_hour, 30), oneLine(offer.native.currency, 10), oneLine(offer.native.rate, 30), oneLine(offer.native.source, 60)
          )}
    </p>
    ${baseline === undefined || !saving
      ? ''
      : html`<p>
          ${words.__(
            '%1 against %2 %3 at %4 a GPU and hour (%5, %6).',
            saving, oneLine(baseline.cloud, 20), oneLine(baseline.instance_type, 40), money(baseline.gpu_nusd_hour, currency),
            oneLine(baseline.region, 30), oneLine(baseline.date, 30)
          )}
        </p>`}`;
}

function partNames(words: Manner['words']): [keyof Omit<PriceParts, 'total'>, string][] {
  return [
    ['time', words.__('time')],
    ['boot', words.__('start of the machine')],
    ['storage', words.__('disk')],
    ['trafficIn', words.__('traffic in')],
    ['trafficOut', words.__('traffic out')],
    ['fee', words.__('fee')]
  ];
}

function facts({ model, words, nowMs }: DetailsProps, offer: Offer): TemplateResult {
  const line = (name: string, value: string): TemplateResult | '' =>
    value ? html`<div><dt>${name}</dt><dd>${value}</dd></div>` : '';
  const known = (value: number, text: string): string => (value > 0 ? text : '');
  return html`<dl class="gm-Facts">
    ${line(words.__('Marketplace'), oneLine(offer.marketplace, 40))} ${line(words.__('Provider'), oneLine(offer.provider, 60))}
    ${line(words.__('Place'), oneLine([offer.region, offer.country].filter(text => text).join(', '), 60))}
    ${line(words.__('Trust'), tierName(offer.tier, words))} ${line(words.__('Kind'), kindName(offer.kind, words))}
    ${line(words.__('Sold as'), oneLine(offer.gpu_raw, 60))}
    ${line(words.__('Processor'), oneLine([offer.cpu_model, known(offer.cpu_cores, words.__('%1 cores', offer.cpu_cores))].filter(text => text).join(', '), 80))}
    ${line(words.__('Memory, disk'), `${known(offer.memory_gib, gib(offer.memory_gib))} ${known(offer.disk_gib, gib(offer.disk_gib))}`.trim())}
    ${line(words.__('Network'), known(offer.down_mbps, words.__('%1 Mbit/s down, %2 up', Math.round(offer.down_mbps), Math.round(offer.up_mbps))))}
    ${line(words.__('CUDA'), oneLine(offer.cuda, 20))}
    ${line(words.__('Reliability, as told'), offer.reliability === null ? '' : `${(offer.reliability * 100).toFixed(1)} %`)}
    ${line(words.__('This machine'), ownWords(offer.own, words))}
    ${line(words.__('Price seen'), ageName(model.table.numbers.seen_ms[offer.row]!, nowMs, words))}
    ${line(words.__('Offer, machine'), [offer.offer_id, offer.machine_id].map(text => oneLine(text, 60)).join(' · '))}
  </dl>`;
}

function closeOnEscape(event: KeyboardEvent, close: () => void): void {
  if (event.key === 'Escape') {
    event.stopPropagation();
    close();
  }
}
