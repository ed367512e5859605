/**
 * Places in JupyterLab that another front end may lack: status bar, launcher, its own Running panel. Their packages are
 * asked for when the application runs, so that a missing one takes nothing else with it.
 */
import { Notification } from '@jupyterlab/apputils';
import { Signal } from '@lumino/signaling';
import { Widget } from '@lumino/widgets';

import { icons, ids } from './commands';
import type { Desk } from './desk';
import { oneLine, rate } from './format';
import { gpuWords, mood, stateWords } from './leases';
import type { Deed } from './news';
import { Teller } from './news';
import { status } from './status';
import type { LeaseView } from './types';

const TICK_MS = 5000;

export async function addExtras(desk: Desk): Promise<void> {
  tellNews(desk);
  await Promise.allSettled([addStatus(desk), addLauncher(desk), addRunning(desk)]);
}

async function addStatus(desk: Desk): Promise<void> {
  const { IStatusBar } = await import('@jupyterlab/statusbar');
  const bar = await desk.app.resolveOptionalService(IStatusBar);
  const item = new Widget();
  item.addClass('gm-Status-item');
  const button = document.createElement('button');
  button.type = 'button';
  button.className = 'gm-Status';
  button.title = desk.words.__('Show what is rented');
  button.addEventListener('click', () => desk.open('running'));
  const draw = (): void => {
    const { model, words, preferences } = desk;
    const shown = status({
      words,
      currency: preferences.currency,
      now: model.now,
      ageMs: model.ageMs(Date.now()),
      isLost: model.problem !== '' || (!model.now.is_up && model.isRenting)
    });
    if (shown === null) {
      button.remove();
      return;
    }
    button.dataset['level'] = shown.level;
    button.textContent = shown.text;
    item.node.append(button);
  };
  desk.model.changed.connect(draw);
  window.setInterval(draw, TICK_MS);
  bar?.registerStatusItem('gpumarket:status', { item, align: 'right', rank: 30 });
}

async function addLauncher(desk: Desk): Promise<void> {
  const { ILauncher } = await import('@jupyterlab/launcher');
  const launcher = await desk.app.resolveOptionalService(ILauncher);
  launcher?.add({ command: ids.offers, category: desk.words.__('Other'), rank: 50 });
}

async function addRunning(desk: Desk): Promise<void> {
  const { IRunningSessionManagers } = await import('@jupyterlab/running');
  const managers = await desk.app.resolveOptionalService(IRunningSessionManagers);
  const changed = new Signal<object, void>(desk.model);
  let shown = '';
  desk.model.changed.connect(() => {
    // The list is drawn anew as a whole: only when something in it differs.
    const now = desk.model.now.leases.map(view => [view.lease.lease_id, view.lease.state, view.lease.name]).join();
    if (now !== shown) {
      shown = now;
      changed.emit();
    }
  });
  const { words, preferences } = desk;
  const item = (view: LeaseView) => ({
    open: () => desk.open('running'),
    shutdown: () => void desk.actions().then(all => all.release(view.lease.lease_id)),
    icon: () => icons.card,
    label: () => `${oneLine(view.lease.name, 40)} · ${gpuWords(view.lease.offer)}`,
    labelTitle: () => stateWords(view.lease.state, words),
    detail: () => rate(view.lease.price_nusd_hour, preferences.currency, words),
    className: `gm-Running-${mood(view)}`
  });
  managers?.add({
    name: words.__('GPU Nodes'),
    supportsMultipleViews: false,
    running: () => desk.model.now.leases.map(item),
    shutdownAll: () => void desk.actions().then(all => all.releaseAll()),
    refreshRunning: () => desk.live.soon(),
    runningChanged: changed,
    shutdownLabel: words.__('Release'),
    shutdownAllLabel: words.__('Release All'),
    // Each release asks by itself; JupyterLab's own question before it would be the second.
    shutdownAllConfirmationText: () => words.__('You will be asked once more, with what each has cost.')
  });
}

/** Notifications with what can be done about each matter. */
function tellNews(desk: Desk): void {
  const teller = new Teller();
  desk.model.seen.connect(({ before, now }) => {
    const { words, preferences, app } = desk;
    const how = { words, currency: preferences.currency, idleMs: preferences.idleMinutes * 60_000 };
    const names: Readonly<Record<Deed, readonly [string, string]>> = {
      extend: [words.__('Extend…'), ids.extend],
      release: [words.__('Release…'), ids.release],
      running: [words.__('Show'), ids.running],
      costs: [words.__('Costs'), ids.costs]
    };
    for (const item of teller.news(before, now, how)) {
      if (!preferences.notify) {
        continue;
      }
      const actions = item.deeds.map(deed => ({
        label: names[deed][0],
        callback: () => void app.commands.execute(names[deed][1], item.lease === '' ? {} : { lease: item.lease })
      }));
      Notification.emit(item.text, item.level, { autoClose: false, actions });
    }
  });
}

