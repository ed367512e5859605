/** Cells that run on GPUs: a badge with the last run's cost, kept in the cell's metadata, and what can be done with it. */
import { Dialog, showDialog } from '@jupyterlab/apputils';
import type { ICellModel, ICodeCellModel } from '@jupyterlab/cells';
import { NotebookActions } from '@jupyterlab/notebook';
import type { NotebookPanel } from '@jupyterlab/notebook';

import type { Remembered } from './badges';
import { KEY, badgeText, isForGpu, isSame, remembered, withMagic } from './badges';
import type { Desk } from './desk';
import { duration, usd } from './format';

const BADGE = 'gm-Badge';

function isCode(model: ICellModel | undefined): model is ICodeCellModel {
  return model?.type === 'code';
}

export class Cells {
  private readonly watched = new WeakSet<ICellModel>();

  constructor(private readonly desk: Desk) {
    desk.notebooks?.forEach(panel => this.watchPanel(panel));
    desk.notebooks?.widgetAdded.connect((_, panel) => this.watchPanel(panel));
    // A kernel rents by itself: what a cell does is told to nobody else.
    NotebookActions.executionScheduled.connect((_, { cell }) => this.soonIfGpu(cell.model));
    NotebookActions.executed.connect((_, { cell }) => this.soonIfGpu(cell.model));
  }

  get isCode(): boolean {
    return isCode(this.active);
  }

  /** The last run of the active cell; empty without one. */
  get runId(): string {
    return this.active === undefined ? '' : (this.kept(this.active)?.run_id ?? '');
  }

  addMagic(): void {
    const model = this.active;
    if (isCode(model)) {
      model.sharedModel.setSource(withMagic(model.sharedModel.getSource()));
    }
  }

  async showCost(): Promise<void> {
    const { api, words } = this.desk;
    const run = this.runId;
    const cost = await api.runCost(run).catch((error: unknown) => String(error));
    const body =
      typeof cost === 'string'
        ? cost
        : [
            words.__('%1 on %2 for %3, at %4 an hour.', usd(cost.amount_nusd), cost.node, duration(cost.duration_ms), usd(cost.rate_nusd_hour)),
            cost.final ? words.__('This is final.') : words.__('This is what has come up so far.'),
            words.__('The node in all: %1, of that boot %2 and idle %3.', usd(cost.lease_total_nusd), usd(cost.lease_boot_nusd), usd(cost.lease_idle_nusd))
          ].join(' ');
    const answer = await showDialog({
      title: words.__('Cost of run %1', run),
      body,
      buttons: [Dialog.cancelButton({ label: words.__('Close') }), Dialog.okButton({ label: words.__('Show its output') })]
    });
    if (answer.button.accept) {
      (await this.desk.actions()).showRunLog(run);
    }
  }

  /** A cell below this one that shows the run's output again, from its first line. */
  async attach(): Promise<void> {
    const run = this.runId;
    const panel = this.desk.notebooks?.currentWidget;
    if (run !== '' && panel) {
      NotebookActions.insertBelow(panel.content);
      panel.content.activeCell?.model.sharedModel.setSource(`%load_ext jupyter_gpumarket\n%gpu attach ${run}`);
      await NotebookActions.run(panel.content, panel.sessionContext);
    }
  }

  /** After a change of the settings. */
  redraw(): void {
    this.desk.notebooks?.forEach(panel => panel.content.widgets.forEach(cell => this.draw(panel, cell.model)));
  }

  private get active(): ICellModel | undefined {
    return this.desk.notebooks?.activeCell?.model;
  }

  private kept(model: ICellModel): Remembered | null {
    return remembered(model.getMetadata(KEY));
  }

  private soonIfGpu(model: ICellModel): void {
    if (/^\s*%{1,2}gpu|\bgm\.|jupyter_gpumarket/.test(model.sharedModel.getSource())) {
      this.desk.live.soon();
    }
  }

  private watchPanel(panel: NotebookPanel): void {
    void panel.context.ready.then(() => {
      const cells = panel.content.model?.cells;
      const watchAll = (): void => {
        for (const model of cells ?? []) {
          this.watchCell(panel, model);
        }
      };
      cells?.changed.connect(watchAll);
      watchAll();
    });
  }

  private watchCell(panel: NotebookPanel, model: ICellModel): void {
    if (!isCode(model) || this.watched.has(model)) {
      return;
    }
    this.watched.add(model);
    model.outputs.changed.connect(() => this.note(model));
    model.metadataChanged.connect(() => this.draw(panel, model));
    model.contentChanged.connect(() => this.draw(panel, model));
    this.draw(panel, model);
  }

  /** The kernel says in an output's metadata which run it was and what it cost: the cell keeps that. */
  private note(model: ICodeCellModel): void {
    // The cost line comes first; what a node displays comes after it and cannot take its place.
    for (let i = 0; i < model.outputs.length; i += 1) {
      const told = remembered(model.outputs.get(i).metadata[KEY]);
      if (told !== null) {
        if (!isSame(told, this.kept(model))) {
          model.setMetadata(KEY, { ...told });
          this.desk.live.soon();
        }
        return;
      }
    }
  }

  private draw(panel: NotebookPanel, model: ICellModel): void {
    const widget = panel.content.widgets.find(one => one.model === model);
    void widget?.ready.then(() => {
      const place = widget.node.querySelector('.jp-Cell-inputWrapper');
      const old = place?.querySelector<HTMLButtonElement>(`.${BADGE}`) ?? null;
      const { words, preferences } = this.desk;
      const kept = this.kept(model);
      if (!place || kept === null || !preferences.showBadges || !isForGpu(model.sharedModel.getSource())) {
        old?.remove();
        return;
      }
      const badge = old ?? document.createElement('button');
      badge.type = 'button';
      badge.className = BADGE;
      badge.textContent = badgeText(kept, words, preferences.currency);
      badge.title = words.__('Run %1 on %2: show its exact cost', kept.run_id, kept.node);
      badge.setAttribute('aria-label', words.__('Cost of this cell: %1', badge.textContent));
      if (old === null) {
        badge.addEventListener('click', () => {
          panel.content.activeCellIndex = panel.content.widgets.indexOf(widget);
          void this.showCost();
        });
        place.append(badge);
      }
    });
  }
}
