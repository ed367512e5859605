/** The sidebar: three tabs over one model. What they show is made by `views/`. */
import { html, render } from 'lit';

import { age } from './format';
import type { TabName } from './layout';
import { TABS } from './layout';
import type { Model } from './model';
import type { Inside } from './place';
import { useSheet } from './sheet';
import sheet from './style.css';
import type { Words } from './words';

/** One tab's content: it draws itself into its host, and is told when it can be seen. */
export interface Pane {
  draw(): void;
  setVisible(visible: boolean): void;
  dispose(): void;
}

export type PaneMaker = (host: HTMLElement) => Pane;

export interface PanelOptions {
  readonly model: Model;
  readonly words: Words;
  readonly panes: Readonly<Record<TabName, PaneMaker>>;
  readonly watched: (watched: boolean) => void;
  readonly tab: TabName;
  readonly tabChosen: (tab: TabName) => void;
}

/** Ages are told anew so often, without asking anything. */
const TICK_MS = 1000;

export class Panel implements Inside {
  private readonly tabs = document.createElement('div');
  private readonly banner = document.createElement('div');
  private readonly hosts: Readonly<Record<TabName, HTMLElement>>;
  private readonly panes: Readonly<Record<TabName, Pane>>;
  private readonly unsubscribe: () => void;
  private current: TabName;
  private ticking = 0;
  private drawing = 0;
  private isVisible = false;

  constructor(
    node: HTMLElement,
    private readonly options: PanelOptions
  ) {
    useSheet('lab', sheet);
    this.tabs.className = 'gm-Tabs';
    this.banner.className = 'gm-Banner-place';
    const host = (tab: TabName): HTMLElement => {
      const element = document.createElement('div');
      element.className = 'gm-Tab';
      element.id = `gm-tab-${tab}`;
      element.setAttribute('role', 'tabpanel');
      element.setAttribute('aria-labelledby', `gm-tab-${tab}-name`);
      return element;
    };
    this.hosts = { offers: host('offers'), running: host('running'), costs: host('costs') };
    node.replaceChildren(this.tabs, this.banner, ...TABS.map(tab => this.hosts[tab]));
    this.current = options.tab;
    const { panes } = options;
    this.panes = {
      offers: panes.offers(this.hosts.offers),
      running: panes.running(this.hosts.running),
      costs: panes.costs(this.hosts.costs)
    };
    this.unsubscribe = options.model.changed.connect(() => this.drawSoon());
    this.draw();
  }

  choose(tab: TabName): void {
    if (tab !== this.current) {
      this.panes[this.current].setVisible(false);
      this.current = tab;
      this.options.tabChosen(tab);
      this.panes[tab].setVisible(this.isVisible);
    }
    this.draw();
  }

  dispose(): void {
    this.unsubscribe();
    this.stopTicking();
    cancelAnimationFrame(this.drawing);
    TABS.forEach(tab => this.panes[tab].dispose());
  }

  /** Draw in the next frame, once for many changes. */
  drawSoon(): void {
    if (this.drawing === 0 && this.isVisible) {
      this.drawing = requestAnimationFrame(() => this.draw());
    }
  }

  setVisible(visible: boolean): void {
    this.isVisible = visible;
    this.options.watched(visible);
    this.panes[this.current].setVisible(visible);
    this.stopTicking();
    if (visible) {
      this.ticking = window.setInterval(() => this.drawSoon(), TICK_MS);
      this.draw();
    }
  }

  focus(): void {
    this.tabs.querySelector<HTMLElement>('[aria-selected="true"]')?.focus();
  }

  private stopTicking(): void {
    window.clearInterval(this.ticking);
    this.ticking = 0;
  }

  private draw(): void {
    this.drawing = 0;
    this.drawTabs();
    this.drawBanner();
    TABS.forEach(tab => (this.hosts[tab].hidden = tab !== this.current));
    this.panes[this.current].draw();
  }

  private drawTabs(): void {
    const words = this.options.words;
    const names: Record<TabName, string> = {
      offers: words.__('Offers'),
      running: words.__('Running'),
      costs: words.__('Costs')
    };
    const count = this.options.model.now.leases.length;
    const tab = (name: TabName): unknown =>
      html`<button
        type="button"
        role="tab"
        id="gm-tab-${name}-name"
        aria-selected=${name === this.current}
        aria-controls="gm-tab-${name}"
        tabindex=${name === this.current ? 0 : -1}
        @click=${() => this.choose(name)}
      >
        ${names[name]}${name === 'running' && count > 0
          ? html` <span class="gm-Count" aria-label=${words._n('%1 node', '%1 nodes', count)}>${count}</span>`
          : ''}
      </button>`;
    render(
      html`<div role="tablist" aria-label=${words.__('GPU market')} @keydown=${(event: KeyboardEvent) => this.step(event)}>
        ${TABS.map(tab)}
      </div>`,
      this.tabs
    );
  }

  private drawBanner(): void {
    const { model } = this.options;
    const words = this.options.words;
    const old = model.ageMs(Date.now());
    const isLost = model.problem !== '' || (model.receivedMs !== null && !model.now.is_up && model.isRenting);
    const reason = model.problem || model.now.message;
    const seen = old === null || model.now.at_ms === 0 ? '' : words.__('What is shown is from %1.', age(old, words));
    render(isLost ? html`<div class="gm-Banner" role="status">${reason} ${seen}</div>` : '', this.banner);
  }

  private step(event: KeyboardEvent): void {
    const at = TABS.indexOf(this.current);
    const to: Readonly<Record<string, number>> = { ArrowRight: at + 1, ArrowLeft: at + 2, Home: 0, End: 2 };
    const next = to[event.key];
    if (next !== undefined) {
      event.preventDefault();
      this.choose(TABS[next % 3] ?? 'offers');
      this.focus();
    }
  }
}
