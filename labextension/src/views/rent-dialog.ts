/**
 * The dialog that rents: price, budget, hours and expiry in one place, then each phase with its time until the node is
 * ready. Nothing outside can press its button: renting goes through this dialog or not at all.
 */
import { html, type TemplateResult } from 'lit';
import { duration, money, oneLine, rate, usd } from '../format';
import { isEnded, isEnding, mayBill, stateWords } from '../leases';
import { phasesOf, type FormProblem, type Renting } from '../offers/renting';
import { kindName } from '../offers/words';
import type { LeaseRequest, LeaseView } from '../types';
import type { Words } from '../words';
import { button, type Manner } from './parts';

export interface RentProps extends Manner {
  renting: Renting;
  /** Makes ids unique on a page. */
  id: string;
  /** What is rented, in words. */
  title: string;
  nowMs: number;
  onClose(): void;
}

/** The dialog; `openDialogs` makes it modal once it is drawn. */
export function rentDialog(props: RentProps): TemplateResult {
  const { renting, words, id, title, onClose } = props;
  return html`<dialog
    class="gm-Dialog"
    aria-labelledby="${id}-rent-title"
    data-lm-suppress-shortcuts="true"
    @cancel=${(event: Event) => {
      // Escape: while a wish is on its way, nobody may leave without knowing what came of it.
      event.preventDefault();
      if (renting.stage !== 'asking') {
        onClose();
      }
    }}
    @keydown=${(event: KeyboardEvent) => event.stopPropagation()}
  >
    <h2 id="${id}-rent-title">${words.__('Rent %1', title)}</h2>
    ${renting.stage === 'following' ? following(props, renting.view!) : form(props)}
  </dialog>`;
}

/** A dialog that was drawn is opened, with its first field ready to be typed over. */
export function openDialogs(host: HTMLElement): void {
  const dialog = host.querySelector<HTMLDialogElement>('dialog:not([open])');
  if (dialog?.isConnected) {
    dialog.showModal();
    dialog.querySelector('input')?.select();
  }
}

// ── the question ────────────────────────────────────────────────────────────────────────────────────────────────────

function form(props: RentProps): TemplateResult {
  const { renting, words, currency, id, onClose } = props;
  const { offer, stage } = renting;
  const wish = renting.wish;
  const problem = 'problem' in wish ? wish : null;
  const isAsking = stage === 'asking';
  return html`<p>
      ${words.__('%1, %2, at %3', rate(offer.price_nusd_hour, currency, words), kindName(offer.kind, words), oneLine(offer.marketplace, 30))}
      ${oneLine(offer.region || offer.country, 40)}
    </p>
    <div class="gm-Fields">
      ${field(props, 'budget', words.__('Budget, dollars'), problem)} ${field(props, 'hours', words.__('Hours at most'), problem)}
    </div>
    ${field(props, 'name', words.__('Name, if you like'), problem)}
    <label class="gm-Check">
      <input
        type="checkbox"
        .checked=${renting.form.orNext}
        ?disabled=${stage !== 'form'}
        @change=${(event: Event) => renting.change({ orNext: (event.target as HTMLInputElement).checked })}
      />
      ${words.__('any offer of the same model and count that is not dearer will do')}
    </label>
    <p id="${id}-rent-terms" class="gm-Dialog-terms" aria-live="polite">
      ${problem ? problemWords(props, problem) : terms(props, wish as LeaseRequest)}
    </p>
    <p class="gm-Dialog-trouble" role="alert">${troubleWords(renting, words)}</p>
    <div class="gm-Buttons">
      ${stage === 'lost'
        ? button(words.__('Give it back, if it was rented'), () => void renting.cancel(), { kind: 'danger' })
        : button(words.__('Cancel'), onClose, { off: isAsking })}
      <button
        type="button"
        class="gm-Button"
        data-kind="main"
        aria-describedby="${id}-rent-terms"
        ?disabled=${isAsking || problem !== null}
        @click=${(event: MouseEvent) => onceClicked(event, () => void renting.submit())}
      >
        ${isAsking ? words.__('Asking…') : stage === 'lost' ? words.__('Ask again') : words.__('Rent for %1', rate(offer.price_nusd_hour, currency, words))}
      </button>
    </div>`;
}

/** A key that is held down, from whatever opened the dialog, must not rent. */
function onceClicked(event: MouseEvent, act: () => void): void {
  const dialog = (event.currentTarget as HTMLElement).closest('dialog');
  if (dialog?.contains(document.activeElement) || event.detail > 0) {
    act();
  }
}

function field({ renting, id, words }: RentProps, name: 'budget' | 'hours' | 'name', label: string, problem: FormProblem | null): TemplateResult {
  return html`<label class="gm-Field">
    <span class="gm-Field-name">${label}</span>
    <input
      class="gm-Input"
      type="text"
      inputmode=${name === 'name' ? 'text' : 'decimal'}
      autocomplete="off"
      placeholder=${name === 'name' ? words.__('made up') : ''}
      .value=${renting.form[name]}
      ?disabled=${renting.stage !== 'form'}
      aria-invalid=${problem?.field === name ? 'true' : 'false'}
      aria-describedby="${id}-rent-terms"
      @input=${(event: Event) => renting.change({ [name]: (event.target as HTMLInputElement).value })}
    />
  </label>`;
}

function terms({ renting, words, currency, nowMs }: RentProps, wish: LeaseRequest): TemplateResult {
  const ends = renting.endsAfterS(wish) * 1000;
  const byMoney = ends < wish.max_s * 1000;
  const at = new Date(nowMs + ends).toLocaleString([], { dateStyle: 'medium', timeStyle: 'short' });
  return html`${words.__('It costs at most')} <strong>${usd(renting.worstNusd(wish), 2)}</strong>.
    ${byMoney
      ? words.__('The budget is used up after about %1: it ends by itself by %2.', duration(ends), at)
      : words.__('It ends by itself by %1, after %2.', at, duration(ends))}
    ${words.__('The price is asked for again before buying; if it is more than 1 % dearer, nothing is bought.')}
    ${currency.code === 'USD' ? '' : words.__('You pay in dollars: %1 an hour.', usd(renting.offer.price_nusd_hour))}`;
}

function problemWords({ renting, words }: RentProps, { problem }: FormProblem): string {
  switch (problem) {
    case 'no amount':
      return words.__('The budget must be an amount in dollars, such as 2.50.');
    case 'too small':
      return words.__('The budget is too small: this offer costs at least %1.', money(renting.leastNusd));
    case 'no hours':
      return words.__('Hours must be a number above nothing, such as 1.5.');
    case 'too long':
      return words.__('Hours must not be more than a year.');
    case 'bad name':
      return words.__('A name has letters, digits, dots and dashes only, and at most 60.');
  }
}

function troubleWords({ stage, trouble }: Renting, words: Words): string {
  if (stage === 'lost') {
    return words.__('%1 Whether it was rented is not known. Asking again asks for the same rental, never for a second one.', oneLine(trouble, 300));
  }
  return oneLine(trouble, 500);
}

// ── what comes of it ────────────────────────────────────────────────────────────────────────────────────────────────

function following(props: RentProps, view: LeaseView): TemplateResult {
  const { renting, words, currency } = props;
  const { lease } = view;
  const isReady = lease.state === 'ready';
  return html`<p>
      <strong>${oneLine(lease.name, 60)}</strong>:
      <span role="status" aria-live="polite">${stateWords(lease.state, words)}</span>
    </p>
    ${phases(props, view)} ${attempts(view, words)}
    <p class="gm-Dialog-terms" aria-live="polite">
      ${words.__('So far %1 of %2.', money(view.cost_nusd, currency), money(lease.request.budget_nusd, currency))}
      ${lease.reason && !isReady ? oneLine(lease.reason, 300) : ''}
      ${isReady && !renting.isCancelled
        ? words.__('Put %1 at the top of a cell, and it runs there. It costs from now on, until it is given back.', '%%gpu')
        : ''}
    </p>
    <p class="gm-Dialog-trouble" role="alert">${oneLine(renting.trouble, 400)}</p>
    ${ways(props, view)}`;
}

function phases({ words, nowMs }: RentProps, view: LeaseView): TemplateResult {
  if (isEnding(view) || isEnded(view)) {
    return html``;
  }
  const names: Readonly<Record<string, string>> = {
    quoting: words.__('quote'),
    renting: words.__('contract'),
    booting: words.__('boot'),
    linking: words.__('link'),
    preparing: words.__('set-up'),
    probing: words.__('probe'),
    ready: words.__('ready')
  };
  const step = view.node?.steps.find(one => one.state === 'running');
  return html`<ol class="gm-Phases">
    ${phasesOf(view, nowMs).map(
      phase => html`<li data-now=${phase.isNow} data-past=${phase.isPast} aria-current=${phase.isNow ? 'step' : 'false'}>
        <span class="gm-Phase-mark" aria-hidden="true">${phase.isPast ? '✓' : phase.isNow ? '●' : '○'}</span>
        <span>${names[phase.state]}</span>
        <span class="gm-Dim">${phase.isNow && step ? oneLine(step.name, 60) : ''}</span>
        <span class="gm-Phase-time">${phase.tookMs === null ? '' : seconds(phase.tookMs)}</span>
      </li>`
    )}
  </ol>`;
}

/** Offers that were tried before this one, and why each failed. */
function attempts(view: LeaseView, words: Words): TemplateResult | '' {
  const tried = view.lease.attempts;
  return tried.length === 0
    ? ''
    : html`<details class="gm-Banner">
        <summary>${words._n('%1 offer failed before', '%1 offers failed before', tried.length)}</summary>
        <ul>
          ${tried.map(one => html`<li>${oneLine(one.marketplace, 30)} ${oneLine(one.offer_id, 40)}: ${oneLine(one.reason, 300)}</li>`)}
        </ul>
      </details>`;
}

function ways({ renting, words, onClose }: RentProps, view: LeaseView): TemplateResult {
  const isOver = isEnded(view);
  const back = mayBill(view) ? words.__('Cancel and give back') : words.__('Cancel');
  return html`<div class="gm-Buttons">
    ${isOver ? '' : button(isEnding(view) || renting.isCancelled ? words.__('Giving back…') : back, () => void renting.cancel(), { kind: 'danger', off: renting.isCancelled || isEnding(view) })}
    ${button(isOver || renting.isDone ? words.__('Close') : words.__('Go on in the background'), onClose, { kind: 'main' })}
  </div>`;
}

function seconds(ms: number): string {
  return ms < 60_000 ? `${(ms / 1000).toFixed(1)} s` : duration(ms);
}
