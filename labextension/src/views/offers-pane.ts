/**
 * The Offers view at work: it owns the model, fetches the list through its source, and draws. The sidebar and the
 * notebook's widget both show this; they differ in their source only.
 */
import { html, render, type TemplateResult } from 'lit';
import sheet from '../offers.css';
import { tableOf } from '../offers/columns';
import { OffersModel } from '../offers/model';
import { Renting } from '../offers/renting';
import { newId, type Keeping, type OffersSource } from '../offers/source';
import { gpusName, memoryName } from '../offers/words';
import { useSheet } from '../sheet';
import type { Defaults } from '../types';
import { details } from './offer-details';
import { countFilters, filters, search, type FiltersProps } from './offers-filters';
import { LINE_PX, WIDE_LINE_PX, list, summary, type ListProps } from './offers-list';
import type { Manner } from './parts';
import { openDialogs, rentDialog } from './rent-dialog';

/** From this width on, filters stand beside the list, and each offer is one line. */
const WIDE_PX = 600;
const REFRESH_MS = 30_000;
/** A list that takes long to fetch is fetched as much more seldom. */
const REFRESH_FACTOR = 30;
const TICK_MS = 1000;
const SAY_AFTER_MS = 700;

let panes = 0;

export class OffersPane {
  readonly model: OffersModel;

  constructor(
    private readonly host: HTMLElement,
    private readonly source: OffersSource,
    private readonly keeping: Keeping,
    private readonly manner: () => Manner
  ) {
    useSheet('offers', sheet);
    host.classList.add('gm-Offers');
    this.model = new OffersModel(keeping.state);
    this.endListening = this.model.onChange(() => this.changed());
    this.sizes = new ResizeObserver(() => this.measure());
    this.sizes.observe(host);
  }

  /** Whether anybody sees it: only then is anything drawn, and the list kept fresh. */
  setVisible(visible: boolean): void {
    window.clearInterval(this.ticking);
    this.isVisible = visible;
    if (visible) {
      this.ticking = window.setInterval(() => this.tick(), TICK_MS);
      this.measure();
      this.tick();
    }
  }

  /** Fetch the list; `anew` makes the marketplaces be asked. */
  async refresh(anew = true): Promise<void> {
    if (this.isLoading) {
      return;
    }
    this.isLoading = true;
    this.drawSoon();
    const began = performance.now();
    try {
      const columns = await this.source.columns(anew);
      this.trouble = '';
      this.model.setTable(tableOf(columns));
    } catch (error) {
      this.trouble = error instanceof Error ? error.message : String(error);
    }
    this.isLoading = false;
    this.nextRefreshMs = Date.now() + Math.max(REFRESH_MS, REFRESH_FACTOR * (performance.now() - began));
    this.drawSoon();
  }

  /** Open the rent dialog for the chosen offer, with a budget and hours to begin with, as text. */
  async askToRent(begin: { budget?: string; hours?: number } = {}): Promise<void> {
    const offer = this.model.selectedOffer;
    if (offer === null || offer.note !== '' || (this.renting !== null && !this.renting.isDone)) {
      return;
    }
    const defaults = await this.defaults();
    this.renting?.dispose();
    this.renting = new Renting({
      source: this.source,
      offer,
      defaults: { ...defaults, budget: begin.budget ?? defaults.budget },
      hours: begin.hours ?? this.model.state.job.hours,
      newId,
      pause: ms => new Promise(resolve => window.setTimeout(resolve, ms)),
      changed: () => this.drawSoon()
    });
    this.rentTitle = `${gpusName(this.model.table, offer.row, this.manner().words)} · ${memoryName(this.model.table, offer.row)}`;
    this.draw();
  }

  dispose(): void {
    this.isDisposed = true;
    this.setVisible(false);
    this.renting?.dispose();
    this.endListening();
    this.sizes.disconnect();
    window.clearTimeout(this.saying);
    cancelAnimationFrame(this.drawing);
    render('', this.host);
  }

  draw(): void {
    cancelAnimationFrame(this.drawing);
    this.drawing = 0;
    if (this.isVisible && !this.isDisposed) {
      render(this.template(), this.host);
      this.afterDrawing();
    }
  }

  private template(): TemplateResult {
    const manner = this.manner();
    const { words } = manner;
    const props = this.listProps(manner);
    const ways = this.filtersProps(manner);
    const set = countFilters(this.model.state.filters);
    return html`<div class="gm-Offers-side">
        <div class="gm-Offers-find">
          ${search(ways)}
          <button
            type="button"
            class="gm-Button gm-Offers-fold"
            aria-expanded=${this.isFolded ? 'false' : 'true'}
            aria-controls="${this.id}-filters"
            @click=${() => this.fold()}
          >
            ${words.__('Filters')}${set > 0 ? ` (${set})` : ''} ${this.isFolded ? '▸' : '▾'}
          </button>
          <button
            type="button"
            class="gm-Button gm-Offers-refresh"
            title=${words.__('Ask the marketplaces anew')}
            aria-label=${words.__('Ask the marketplaces anew')}
            ?disabled=${this.isLoading}
            @click=${() => void this.refresh()}
          >
            ⟳
          </button>
          ${this.model.isFiltered
            ? html`<button type="button" class="gm-Link" @click=${() => this.model.clearFilters()}>${words.__('Clear')}</button>`
            : ''}
        </div>
        <div class="gm-Offers-filters" id="${this.id}-filters" ?hidden=${this.isFolded}>${filters(ways)}</div>
      </div>
      <div class="gm-Offers-main">
        ${list(props)}
        ${details({
          ...manner,
          model: this.model,
          nowMs: props.nowMs,
          onClose: () => this.closeDetails(),
          onRent: () => void this.askToRent()
        })}
      </div>
      ${this.renting === null
        ? ''
        : rentDialog({
            ...manner,
            renting: this.renting,
            id: this.id,
            title: this.rentTitle,
            nowMs: props.nowMs,
            onClose: () => this.closeRenting()
          })}`;
  }

  private listProps(manner: Manner): ListProps {
    return {
      ...manner,
      model: this.model,
      id: this.id,
      nowMs: Date.now(),
      isWide: this.isWide,
      scrollPx: this.scrollPx,
      viewPx: this.viewPx,
      active: this.active,
      isLoading: this.isLoading,
      trouble: this.trouble,
      said: this.said,
      onState: change => this.model.update(change),
      onFilter: change => this.model.filter(change),
      onClear: () => this.model.clearFilters(),
      onRefresh: () => void this.refresh(),
      onScroll: px => this.scrolled(px),
      onKey: event => this.pressed(event),
      onLine: line => this.chooseLine(line)
    };
  }

  private filtersProps(manner: Manner): FiltersProps {
    return {
      ...manner,
      model: this.model,
      allModels: this.allModels,
      onFilter: change => this.model.filter(change),
      onState: change => this.model.update(change),
      onAllModels: all => {
        this.allModels = all;
        this.drawSoon();
      }
    };
  }

  /** The model changed: draw in the next frame, keep the state, and tell how many are left once it has settled. */
  private changed(): void {
    this.keeping.save(this.model.state);
    this.active = Math.min(this.active, this.model.lines.count - 1);
    window.clearTimeout(this.saying);
    this.saying = window.setTimeout(() => {
      const said = summary({ ...this.manner(), model: this.model });
      if (said !== this.said) {
        this.said = said;
        this.drawSoon();
      }
    }, SAY_AFTER_MS);
    this.drawSoon();
  }

  private drawSoon(): void {
    if (this.drawing === 0 && this.isVisible && !this.isDisposed) {
      this.drawing = requestAnimationFrame(() => this.draw());
    }
  }

  private tick(): void {
    if (!document.hidden && Date.now() >= this.nextRefreshMs) {
      void this.refresh(false);
    }
    this.drawSoon();
  }

  private measure(): void {
    const width = this.host.clientWidth;
    const isWide = width >= WIDE_PX;
    if (width > 0 && isWide !== this.isWide) {
      this.isWide = isWide;
      this.host.classList.toggle('gm-mod-wide', isWide);
    }
    this.drawSoon();
  }

  /** What only the page knows: how high the list is, and how far it is scrolled, after lines were taken away. */
  private afterDrawing(): void {
    openDialogs(this.host);
    const element = this.listElement;
    if (element && (element.clientHeight !== this.viewPx || element.scrollTop !== this.scrollPx)) {
      this.viewPx = element.clientHeight;
      this.scrollPx = element.scrollTop;
      this.drawSoon();
    }
  }

  private scrolled(px: number): void {
    this.scrollPx = px;
    this.drawSoon();
  }

  private pressed(event: KeyboardEvent): void {
    const page = Math.max(1, Math.floor(this.viewPx / this.linePx) - 1);
    const last = this.model.lines.count - 1;
    const to: Readonly<Record<string, number>> = {
      ArrowDown: this.active + 1,
      ArrowUp: this.active - 1,
      PageDown: this.active + page,
      PageUp: this.active - page,
      Home: 0,
      End: last
    };
    const next = to[event.key];
    if (next !== undefined) {
      this.activate(Math.max(0, Math.min(last, next)));
    } else if (this.active >= 0 && (event.key === 'Enter' || event.key === ' ')) {
      this.chooseLine(this.active);
    } else if (this.active >= 0 && (event.key === 'ArrowRight' || event.key === 'ArrowLeft')) {
      this.openGroup(event.key === 'ArrowRight');
    } else if (event.key === 'Escape' && this.model.selected) {
      this.closeDetails();
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }

  private activate(line: number): void {
    this.active = line;
    const top = line * this.linePx;
    const element = this.listElement;
    if (element && top < element.scrollTop) {
      element.scrollTop = top;
    } else if (element && top + this.linePx > element.scrollTop + element.clientHeight) {
      element.scrollTop = top + this.linePx - element.clientHeight;
    }
    this.drawSoon();
  }

  private openGroup(open: boolean): void {
    const at = this.model.lines.at[this.active] ?? 0;
    const group = at < 0 ? this.model.lines.groups[-1 - at] : undefined;
    if (group && group.isOpen !== open) {
      this.model.toggleGroup(group.name);
    }
  }

  private chooseLine(line: number): void {
    const at = this.model.lines.at[line];
    if (at === undefined) {
      return;
    }
    this.active = line;
    const group = at < 0 ? this.model.lines.groups[-1 - at] : undefined;
    if (group) {
      this.model.toggleGroup(group.name);
      this.drawSoon();
    } else {
      this.model.select(at);
      this.draw();
      this.host.querySelector<HTMLElement>('.gm-Details')?.focus();
    }
  }

  private closeDetails(): void {
    this.model.select(-1);
    this.draw();
    this.listElement?.focus();
  }

  private closeRenting(): void {
    this.host.querySelector('dialog')?.close();
    this.renting?.dispose();
    this.renting = null;
    this.draw();
  }

  private fold(): void {
    this.isFolded = !this.isFolded;
    this.drawSoon();
  }

  private async defaults(): Promise<Defaults> {
    try {
      return await this.source.defaults();
    } catch {
      // The form then begins with what this offer costs; the rental itself tells what is wrong.
      return { ask: true, budget: '', hours: this.model.state.job.hours, max_price: '', project: '', user: '' };
    }
  }

  private get listElement(): HTMLElement | null {
    return this.host.querySelector<HTMLElement>('.gm-Offers-list');
  }

  private get linePx(): number {
    return this.isWide ? WIDE_LINE_PX : LINE_PX;
  }

  private readonly id = `gm-offers-${++panes}`;
  private readonly endListening: () => void;
  private readonly sizes: ResizeObserver;
  private isWide = false;
  private isVisible = false;
  private isFolded = false;
  private allModels = false;
  private isLoading = false;
  private isDisposed = false;
  private trouble = '';
  private said = '';
  private rentTitle = '';
  private active = -1;
  private scrollPx = 0;
  private viewPx = 0;
  private nextRefreshMs = 0;
  private drawing = 0;
  private ticking = 0;
  private saying = 0;
  private renting: Renting | null = null;
}

