/** A tab whose code is fetched when it is first seen, so that a page on which nobody rents does not pay for it. */
import { render } from 'lit';

import type { Pane } from './panel';
import type { Manner } from './views/parts';
import { button, empty, loading } from './views/parts';

export class LazyPane implements Pane {
  private pane: Pane | null = null;
  private isFetching = false;
  private isVisible = false;
  private isDisposed = false;

  constructor(
    private readonly host: HTMLElement,
    private readonly manner: () => Manner,
    private readonly fetchPane: () => Promise<Pane>
  ) {}

  draw(): void {
    this.pane?.draw();
  }

  setVisible(visible: boolean): void {
    this.isVisible = visible;
    if (this.pane !== null) {
      this.pane.setVisible(visible);
    } else if (visible && !this.isFetching) {
      void this.begin();
    }
  }

  dispose(): void {
    this.isDisposed = true;
    this.pane?.dispose();
  }

  private async begin(): Promise<void> {
    const { words } = this.manner();
    this.isFetching = true;
    render(loading(words), this.host);
    try {
      const pane = await this.fetchPane();
      render('', this.host);
      if (this.isDisposed) {
        pane.dispose();
        return;
      }
      this.pane = pane;
      pane.setVisible(this.isVisible);
      pane.draw();
    } catch (error) {
      const again = button(words.__('Try again'), () => void this.begin());
      render(empty(words.__('This view could not be loaded'), String(error), again), this.host);
    }
    this.isFetching = false;
  }
}
