/** What the commands for clusters and maps do. Each asks first, and cannot be told not to. */
import { InputDialog, Notification } from '@jupyterlab/apputils';

import { tried } from './actions';
import { askAdapt, askEnd, askScale, askStop } from './cluster-dialogs';
import type { Sized } from './cluster-dialogs';
import type { Desk } from './desk';
import type { AimFields } from './dialog-values';
import type { Asking } from './dialogs';
import type { ClusterNow, FanOut } from './fanout';
import { oneLine } from './format';

export class ClusterActions {
  constructor(private readonly desk: Desk) {}

  async scale(cluster: string, nodes = ''): Promise<void> {
    const found = await this.cluster(cluster, this.desk.words.__('Scale which cluster?'));
    await this.size(found, found && (await askScale(found, nodes, this.asking)));
  }

  async adapt(cluster: string, given: Partial<AimFields> = {}): Promise<void> {
    const found = await this.cluster(cluster, this.desk.words.__('Adapt which cluster?'));
    await this.size(found, found && (await askAdapt(found, given, this.asking)));
  }

  async end(cluster: string): Promise<void> {
    const { api, model, words } = this.desk;
    const found = await this.cluster(cluster, words.__('Give back which cluster?'));
    const nodeName = (lease: string): string => model.lease(lease)?.lease.name ?? lease.slice(0, 8);
    if (found !== null && (await askEnd(found, nodeName, this.asking))) {
      await tried(this.desk, () => api.endCluster(found));
    }
  }

  async stopMap(map: string): Promise<void> {
    const { api, words } = this.desk;
    const maps = ((await this.fanOut())?.maps ?? []).filter(one => one.map.state === 'running');
    const found = await this.chosen(
      maps.filter(one => map === '' || one.map.map_id === map),
      one => `${oneLine(one.map.label || one.map.item_name, 40)} (${one.map.map_id})`,
      words.__('Stop which map?'),
      words.__('No such map runs now.')
    );
    if (found !== null && (await askStop(found, this.asking))) {
      await tried(this.desk, () => api.stopMap(found.map.map_id, found.lease));
    }
  }

  private async size(cluster: ClusterNow | null, wanted: Sized | null): Promise<void> {
    if (cluster !== null && wanted !== null) {
      await tried(this.desk, () => this.desk.api.aim(cluster, wanted.aim, wanted.budget));
    }
  }

  private async cluster(named: string, question: string): Promise<ClusterNow | null> {
    const all = ((await this.fanOut())?.clusters ?? []).filter(one => !one.is_ended || one.leases.length > 0);
    return this.chosen(
      all.filter(one => named === '' || one.name === named || one.cluster_id === named),
      one => oneLine(one.name, 60),
      question,
      this.desk.words.__('No such cluster is rented now.')
    );
  }

  /** As it is now: what is asked about must not be what a page saw some time ago. */
  private async fanOut(): Promise<FanOut | null> {
    let seen: FanOut | null = null;
    await tried(this.desk, async () => (seen = await this.desk.api.fanOut()));
    return seen;
  }

  /** The only one, or the one that is chosen now. */
  private async chosen<T>(all: readonly T[], name: (one: T) => string, question: string, none: string): Promise<T | null> {
    if (all.length < 2) {
      if (all.length === 0) {
        Notification.info(none);
      }
      return all[0] ?? null;
    }
    const items = all.map(name);
    const answer = await InputDialog.getItem({ title: question, items });
    return answer.button.accept && answer.value !== null ? (all[items.indexOf(answer.value)] ?? null) : null;
  }

  private get asking(): Asking {
    return { words: this.desk.words, currency: this.desk.preferences.currency };
  }
}
