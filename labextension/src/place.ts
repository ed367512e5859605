/** The sidebar's place in JupyterLab. It is empty until it is first seen; then what shall be in it is fetched. */
import type { Message } from '@lumino/messaging';
import { Widget } from '@lumino/widgets';

import type { TabName } from './layout';
import type { Words } from './words';

/** What fills the place. */
export interface Inside {
  choose(tab: TabName): void;
  setVisible(visible: boolean): void;
  drawSoon(): void;
  focus(): void;
  dispose(): void;
}

export const PANEL_ID = 'gm-sidebar';

export class Place extends Widget {
  private inside: Inside | null = null;
  private isFilling = false;
  private wanted: TabName | null = null;
  private isFocusWanted = false;

  constructor(
    private readonly words: Words,
    private readonly fill: (node: HTMLElement) => Promise<Inside>
  ) {
    super();
    this.id = PANEL_ID;
    this.addClass('gm-Root');
    this.addClass('gm-Panel');
  }

  /** Show a tab, at once or as soon as there is one. */
  choose(tab: TabName): void {
    this.wanted = tab;
    this.inside?.choose(tab);
  }

  drawSoon(): void {
    this.inside?.drawSoon();
  }

  override dispose(): void {
    this.inside?.dispose();
    super.dispose();
  }

  protected override onAfterShow(message: Message): void {
    super.onAfterShow(message);
    if (this.inside === null) {
      void this.begin();
    } else {
      this.inside.setVisible(true);
    }
  }

  protected override onAfterHide(message: Message): void {
    super.onAfterHide(message);
    this.inside?.setVisible(false);
  }

  protected override onActivateRequest(message: Message): void {
    super.onActivateRequest(message);
    this.isFocusWanted = this.inside === null;
    this.inside?.focus();
  }

  private async begin(): Promise<void> {
    if (this.isFilling) {
      return;
    }
    this.isFilling = true;
    try {
      const inside = await this.fill(this.node);
      if (this.isDisposed) {
        inside.dispose();
        return;
      }
      this.inside = inside;
      if (this.wanted !== null) {
        inside.choose(this.wanted);
      }
      inside.setVisible(this.isVisible);
      if (this.isFocusWanted) {
        inside.focus();
      }
    } catch (error) {
      this.node.textContent = this.words.__('This could not be loaded: %1. Close it and open it again to try once more.', String(error));
    }
    this.isFilling = false;
  }
}
