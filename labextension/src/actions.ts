/** What the commands do. Whatever spends or loses something asks first, here, and cannot be told not to. */
import { InputDialog, MainAreaWidget, Notification } from '@jupyterlab/apputils';
import { PageConfig } from '@jupyterlab/coreutils';
import { Widget } from '@lumino/widgets';

import { ApiError } from './api';
import { span } from './costs';
import type { Desk } from './desk';
import type { Asking } from './dialogs';
import { askBudget, askExtend, askRelease } from './dialogs';
import { oneLine } from './format';
import { isEnding } from './leases';
import { useSheet } from './sheet';
import sheet from './style.css';
import type { BudgetView, CostQuery, ExportFormat, LeaseView } from './types';

const LOG_EVERY_MS = 3000;
const MIME_BY_FORMAT: Readonly<Record<ExportFormat, string>> = {
  csv: 'text/csv;charset=utf-8',
  parquet: 'application/vnd.apache.parquet',
  // Not text/html: a browser would open it as a page of this origin.
  html: 'application/octet-stream'
};

export class Actions {
  constructor(private readonly desk: Desk) {}

  async release(lease: string): Promise<void> {
    const view = await this.chosen(lease, this.desk.words.__('Give back which node?'));
    if (view !== null) {
      await this.releaseAsked([view]);
    }
  }

  async releaseAll(): Promise<void> {
    const views = this.desk.model.now.leases.filter(view => !isEnding(view));
    if (views.length > 0) {
      await this.releaseAsked(views);
    }
  }

  async extend(lease: string): Promise<void> {
    const view = await this.chosen(lease, this.desk.words.__('Extend which node?'));
    const totals = view === null ? null : await askExtend(view, this.asking);
    if (view !== null && totals !== null) {
      await this.tried(async () => this.desk.model.takeLease(await this.desk.api.extend(view.lease.lease_id, totals)));
    }
  }

  async setBudget(given: BudgetView | null): Promise<void> {
    const user = given === null ? await this.user() : '';
    const wanted = await askBudget(given?.budget ?? { scope: 'user', key: user }, this.asking);
    if (wanted !== null) {
      await this.tried(() => this.desk.api.setBudget(wanted));
    }
  }

  async exportCosts(format: ExportFormat): Promise<void> {
    const { layout, model } = this.desk;
    const at = span(layout.now.period, model.serverMs(Date.now()));
    const query: CostQuery = { since_ms: at.sinceMs, until_ms: at.untilMs };
    await this.tried(async () => {
      const file = await this.desk.api.costFile(format, query);
      const bytes = file.base64 ? Uint8Array.from(atob(file.content), c => c.charCodeAt(0)) : file.content;
      const address = URL.createObjectURL(new Blob([bytes], { type: MIME_BY_FORMAT[format] }));
      const link = document.createElement('a');
      link.href = address;
      link.download = file.name;
      link.click();
      window.setTimeout(() => URL.revokeObjectURL(address), 60_000);
    });
  }

  /** A node's log in the main area, read again while it can be seen. */
  async showLog(lease: string): Promise<void> {
    const view = await this.chosen(lease, this.desk.words.__('The log of which node?'));
    if (view !== null) {
      const { lease_id, name } = view.lease;
      const read = async (): Promise<string> => (await this.desk.api.nodeLog(lease_id)).text;
      this.showText(`gm-log-${lease_id}`, this.desk.words.__('Log of %1', oneLine(name, 40)), read);
    }
  }

  showRunLog(run: string): void {
    const read = async (): Promise<string> => (await this.desk.api.runLog(run)).text;
    this.showText(`gm-run-${run}`, this.desk.words.__('Output of run %1', run.slice(0, 8)), read);
  }

  /** The notebook that the lease was rented for, or a new one whose first cell runs there. */
  async openSession(lease: string): Promise<void> {
    const view = await this.chosen(lease, this.desk.words.__('Open a session on which node?'));
    if (view === null) {
      return;
    }
    const { app } = this.desk;
    const path = belowRoot(view.lease.request.owner.notebook);
    if (path.endsWith('.ipynb')) {
      try {
        await app.serviceManager.contents.get(path, { content: false });
        await app.commands.execute('docmanager:open', { path });
        return;
      } catch {
        // It was moved, or belongs to another server: a new notebook does as well.
      }
    }
    await this.newNotebook(view);
  }

  private async newNotebook(view: LeaseView): Promise<void> {
    const { app, notebooks } = this.desk;
    await app.commands.execute('notebook:create-new', { kernelName: 'python3' });
    const panel = notebooks?.currentWidget;
    await panel?.context.ready;
    const cell = panel?.content.activeCell?.model;
    if (cell?.type === 'code' && cell.sharedModel.getSource() === '') {
      const name = view.lease.name.replace(/[^\w.-]/g, '');
      cell.sharedModel.setSource(`%load_ext jupyter_gpumarket`);
      panel?.content.model?.sharedModel.addCell({ cell_type: 'code', source: `%%gpu --on ${name}\n` });
    }
  }

  private get asking(): Asking {
    return { words: this.desk.words, currency: this.desk.preferences.currency };
  }

  private async releaseAsked(views: readonly LeaseView[]): Promise<void> {
    const { api, model, preferences } = this.desk;
    const isBusy = views.some(view => (view.node?.running.length ?? 0) > 0 || view.node === null);
    const isAsked = preferences.askOnRelease === 'always' || isBusy || views.length > 1;
    if (isAsked && !(await askRelease(views, this.asking))) {
      return;
    }
    await this.tried(async () => {
      const answers = await Promise.allSettled(views.map(view => api.release(view.lease.lease_id, 'asked in JupyterLab')));
      for (const answer of answers) {
        if (answer.status === 'fulfilled') {
          model.takeLease(answer.value);
        }
      }
      const failed = answers.find(answer => answer.status === 'rejected');
      if (failed !== undefined) {
        throw failed.reason;
      }
    });
  }

  private tried(act: () => Promise<unknown>): Promise<void> {
    return tried(this.desk, act);
  }

  /** The lease that is meant: by id or name, the only one, or the one that is chosen now. */
  private async chosen(lease: string, question: string): Promise<LeaseView | null> {
    const { model, live } = this.desk;
    if (model.receivedMs === null) {
      await live.look();
    }
    const leases = model.now.leases;
    const found = lease === '' ? (leases.length === 1 ? leases[0] : undefined) : model.lease(lease);
    if (found !== undefined || leases.length === 0 || lease !== '') {
      if (found === undefined) {
        Notification.info(this.desk.words.__('No such node is rented now.'));
      }
      return found ?? null;
    }
    const items = leases.map(view => `${view.lease.name} (${view.lease.lease_id.slice(0, 8)})`);
    const answer = await InputDialog.getItem({ title: question, items });
    return answer.button.accept && answer.value !== null ? (leases[items.indexOf(answer.value)] ?? null) : null;
  }

  private async user(): Promise<string> {
    try {
      return (await this.desk.api.defaults()).user;
    } catch {
      return '';
    }
  }

  private showText(id: string, title: string, read: () => Promise<string>): void {
    const { shell } = this.desk.app;
    if ([...shell.widgets('main')].some(widget => widget.id === id)) {
      shell.activateById(id);
      return;
    }
    const widget = new MainAreaWidget({ content: new TextView(read) });
    widget.id = id;
    widget.title.label = title;
    widget.title.closable = true;
    shell.add(widget, 'main', { mode: 'split-bottom' });
  }
}

/** Do it, tell when it fails, and look at what came of it. */
export async function tried({ live }: Desk, act: () => Promise<unknown>): Promise<void> {
  try {
    await act();
  } catch (error) {
    const text = error instanceof ApiError ? error.message : String(error);
    Notification.error(oneLine(text, 400), { autoClose: false });
  }
  live.soon();
}

/** A notebook's path as this server names it; a kernel may have told the whole path on the disk. Empty: elsewhere. */
function belowRoot(path: string): string {
  const root = PageConfig.getOption('serverRoot').replace(/\/$/, '');
  if (root !== '' && path.startsWith(`${root}/`)) {
    return path.slice(root.length + 1);
  }
  return path.startsWith('/') ? '' : path;
}

/** A stranger's words, as text and nothing else. */
class TextView extends Widget {
  private readonly timer: number;

  constructor(private readonly read: () => Promise<string>) {
    super({ node: document.createElement('pre') });
    useSheet('lab', sheet);
    this.addClass('gm-Log');
    this.node.tabIndex = 0;
    this.node.textContent = '…';
    void this.refresh();
    this.timer = window.setInterval(() => void (this.isVisible && this.refresh()), LOG_EVERY_MS);
  }

  override dispose(): void {
    window.clearInterval(this.timer);
    super.dispose();
  }

  private async refresh(): Promise<void> {
    const isAtEnd = this.node.scrollTop + this.node.clientHeight >= this.node.scrollHeight - 4;
    try {
      this.node.textContent = await this.read();
    } catch (error) {
      this.node.textContent = error instanceof ApiError ? error.message : String(error);
    }
    if (isAtEnd) {
      this.node.scrollTop = this.node.scrollHeight;
    }
  }
}
