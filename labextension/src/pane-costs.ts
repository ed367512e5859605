/** The tab Costs: reads the ledger's lines of the chosen span while it can be seen, seldom, and after every change. */
import { render } from 'lit';

import type { Api } from './api';
import { ApiError } from './api';
import type { By, Period } from './costs';
import { span, steps, sums, total } from './costs';
import type { Model } from './model';
import type { Pane } from './panel';
import type { CostList } from './types';
import { costs } from './views/costs';
import type { CostsWishes } from './views/costs';
import type { Manner } from './views/parts';

export interface Kept {
  readonly period: Period;
  readonly by: By;
}

/** The whole list is a long answer; what is spent today comes more often with the model. */
const EVERY_MS = 15_000;

export class CostsTab implements Pane {
  private list: CostList | null = null;
  private problem = '';
  private readMs = 0;
  private spentSeen = -1;
  private isVisible = false;
  private isReading = false;

  constructor(
    private readonly host: HTMLElement,
    private readonly api: Api,
    private readonly model: Model,
    private readonly manner: () => Manner,
    private kept: Kept,
    private readonly keep: (kept: Kept) => void,
    private readonly wishes: Pick<CostsWishes, 'exportAs' | 'setBudget'>
  ) {}

  /** Since when and until when lines are shown, for the exported files too. */
  get query(): { since_ms: number; until_ms: number } {
    const at = span(this.kept.period, this.model.serverMs(Date.now()));
    return { since_ms: at.sinceMs, until_ms: at.untilMs };
  }

  draw(): void {
    const { model } = this;
    const isOld = Date.now() - this.readMs > EVERY_MS || model.now.spent_today_nusd !== this.spentSeen;
    if (this.isVisible && isOld && Date.now() - this.readMs > 2000) {
      void this.read();
    }
    const at = span(this.kept.period, model.serverMs(Date.now()));
    const charges = this.list?.charges ?? [];
    const props = {
      ...this.manner(),
      isKnown: this.list !== null,
      problem: this.problem,
      period: this.kept.period,
      by: this.kept.by,
      span: at,
      total: total(charges, at),
      bars: steps(charges, at),
      groups: sums(charges, this.kept.by, at),
      budgets: model.now.budgets,
      wishes: {
        ...this.wishes,
        period: (period: Period) => this.choose({ ...this.kept, period }),
        by: (by: By) => this.choose({ ...this.kept, by })
      }
    };
    render(costs(props), this.host);
  }

  setVisible(visible: boolean): void {
    this.isVisible = visible;
    if (visible) {
      void this.read();
    }
  }

  dispose(): void {
    render('', this.host);
  }

  /** As it was before a reload of the page. */
  restore(kept: Kept): void {
    this.kept = { period: kept.period, by: kept.by };
    if (this.isVisible) {
      void this.read();
    }
  }

  private choose(kept: Kept): void {
    const isOther = kept.period !== this.kept.period;
    this.kept = kept;
    this.keep(kept);
    if (isOther) {
      void this.read();
    }
    this.draw();
  }

  private async read(): Promise<void> {
    if (this.isReading) {
      return;
    }
    this.isReading = true;
    this.readMs = Date.now();
    this.spentSeen = this.model.now.spent_today_nusd;
    const asked = this.kept.period;
    try {
      this.list = await this.api.costs({ since_ms: this.query.since_ms });
      this.problem = '';
    } catch (error) {
      this.problem = error instanceof ApiError ? error.message : String(error);
    }
    this.isReading = false;
    if (asked !== this.kept.period) {
      void this.read();
    }
    this.draw();
  }
}
