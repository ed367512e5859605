/** The tab Running: draws the model as it is, and looks at clusters and maps after each look at the leases. */
import { render } from 'lit';

import { ApiError } from './api';
import type { Desk } from './desk';
import type { FanOut } from './fanout';
import { Pace } from './fanout';
import type { Pane } from './panel';
import type { ClusterWishes } from './views/clusters';
import type { Manner } from './views/parts';
import type { RunningWishes } from './views/running';
import { running } from './views/running';

const NONE: FanOut = { at_ms: 0, is_up: false, clusters: [], maps: [], troubles: [] };

export class RunningTab implements Pane {
  private areAllShown = false;
  private isVisible = false;
  private isReading = false;
  private readOf = -1;
  private fanOut = NONE;
  private trouble = '';
  private readonly pace = new Pace();
  private readonly wishes: Omit<RunningWishes, 'showAll'>;
  private readonly clusterWishes: ClusterWishes;

  constructor(
    private readonly host: HTMLElement,
    private readonly desk: Desk,
    private readonly manner: () => Manner
  ) {
    const { actions, clusterActions } = desk;
    this.wishes = {
      rent: () => desk.open('offers'),
      session: lease => void actions().then(all => all.openSession(lease)),
      log: lease => void actions().then(all => all.showLog(lease)),
      extend: lease => void actions().then(all => all.extend(lease)),
      release: lease => void actions().then(all => all.release(lease)),
      releaseAll: () => void actions().then(all => all.releaseAll())
    };
    this.clusterWishes = {
      scale: cluster => void clusterActions().then(all => all.scale(cluster)),
      adapt: cluster => void clusterActions().then(all => all.adapt(cluster)),
      endCluster: cluster => void clusterActions().then(all => all.end(cluster)),
      stopMap: map => void clusterActions().then(all => all.stopMap(map))
    };
  }

  draw(): void {
    const { model } = this.desk;
    if (this.isVisible && model.receivedMs !== null && model.receivedMs !== this.readOf) {
      this.readOf = model.receivedMs;
      void this.read();
    }
    const showAll = (): void => {
      this.areAllShown = true;
      this.draw();
    };
    const nowMs = model.serverMs(Date.now());
    const props = {
      ...this.manner(),
      now: model.now,
      isKnown: model.receivedMs !== null || model.problem !== '',
      nowMs,
      use: (lease: string) => model.use(lease),
      areAllShown: this.areAllShown,
      wishes: { ...this.wishes, showAll },
      fanOut: this.fanOut,
      fanOutTrouble: this.trouble,
      nodeName: (lease: string) => model.lease(lease)?.lease.name ?? lease.slice(0, 8),
      perS: ({ map }: FanOut['maps'][number]) => this.pace.perS(map, nowMs),
      clusterWishes: this.clusterWishes
    };
    render(running(props), this.host);
  }

  setVisible(visible: boolean): void {
    this.isVisible = visible;
    if (visible) {
      this.draw();
    }
  }

  dispose(): void {
    render('', this.host);
  }

  /** What was seen stays when a look fails, as everything here; the panel tells how old it is. */
  private async read(): Promise<void> {
    if (this.isReading) {
      return;
    }
    this.isReading = true;
    try {
      const seen = await this.desk.api.fanOut();
      if (seen.is_up) {
        this.fanOut = seen;
        this.pace.take(seen);
      }
      this.trouble = '';
    } catch (error) {
      const isTold = error instanceof ApiError && error.isLost;
      this.trouble = isTold ? '' : error instanceof ApiError ? error.message : String(error);
    }
    this.isReading = false;
    this.draw();
  }
}
