/** The tab Running: draws the model as it is. */
import { render } from 'lit';

import type { Model } from './model';
import type { Pane } from './panel';
import type { Manner } from './views/parts';
import type { RunningWishes } from './views/running';
import { running } from './views/running';

export class RunningTab implements Pane {
  private areAllShown = false;

  constructor(
    private readonly host: HTMLElement,
    private readonly model: Model,
    private readonly manner: () => Manner,
    private readonly wishes: Omit<RunningWishes, 'showAll'>
  ) {}

  draw(): void {
    const { model } = this;
    const showAll = (): void => {
      this.areAllShown = true;
      this.draw();
    };
    const props = {
      ...this.manner(),
      now: model.now,
      isKnown: model.receivedMs !== null || model.problem !== '',
      nowMs: model.serverMs(Date.now()),
      use: (lease: string) => model.use(lease),
      areAllShown: this.areAllShown,
      wishes: { ...this.wishes, showAll }
    };
    render(running(props), this.host);
  }

  setVisible(visible: boolean): void {
    if (visible) {
      this.draw();
    }
  }

  dispose(): void {
    render('', this.host);
  }
}
