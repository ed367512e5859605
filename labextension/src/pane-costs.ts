/** The tab Costs: reads the ledger's lines of the chosen span while it can be seen, seldom, and after every change. */
import { render } from 'lit';

import { ApiError } from './api';
import { span, steps, sums, total } from './costs';
import type { Desk } from './desk';
import type { By, Period } from './layout';
import type { Pane } from './panel';
import type { BudgetView, CostList, ExportFormat } from './types';
import { costs } from './views/costs';
import type { Manner } from './views/parts';

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
    private readonly desk: Desk,
    private readonly manner: () => Manner
  ) {}

  draw(): void {
    const { actions, layout, model } = this.desk;
    const { period, by } = layout.now;
    const isOld = Date.now() - this.readMs > EVERY_MS || model.now.spent_today_nusd !== this.spentSeen;
    if (this.isVisible && isOld && Date.now() - this.readMs > 2000) {
      void this.read();
    }
    const at = span(period, model.serverMs(Date.now()));
    const charges = this.list?.charges ?? [];
    const props = {
      ...this.manner(),
      isKnown: this.list !== null,
      problem: this.problem,
      period,
      by,
      span: at,
      total: total(charges, at),
      bars: steps(charges, at),
      groups: sums(charges, by, at),
      budgets: model.now.budgets,
      wishes: {
        exportAs: (format: ExportFormat) => void actions().then(all => all.exportCosts(format)),
        setBudget: (view: BudgetView | null) => void actions().then(all => all.setBudget(view)),
        period: (wanted: Period) => this.choose({ period: wanted }),
        by: (wanted: By) => this.choose({ by: wanted })
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

  private choose(wanted: { period?: Period; by?: By }): void {
    const before = this.desk.layout.now.period;
    this.desk.layout.keep(wanted);
    if (this.desk.layout.now.period !== before) {
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
    const { api, layout, model } = this.desk;
    this.spentSeen = model.now.spent_today_nusd;
    const asked = layout.now.period;
    try {
      this.list = await api.costs({ since_ms: span(asked, model.serverMs(Date.now())).sinceMs });
      this.problem = '';
    } catch (error) {
      this.problem = error instanceof ApiError ? error.message : String(error);
    }
    this.isReading = false;
    if (asked !== layout.now.period) {
      void this.read();
    }
    this.draw();
  }
}
