/** What of the sidebar is kept over a reload, in JupyterLab's workspace. */
import type { IStateDB } from '@jupyterlab/statedb';

export type TabName = 'offers' | 'running' | 'costs';
export type Period = 'today' | 'week' | 'month';
export type By = 'notebook' | 'user' | 'project' | 'marketplace' | 'gpu';

export const TABS: readonly TabName[] = ['offers', 'running', 'costs'];
export const PERIODS: readonly Period[] = ['today', 'week', 'month'];
export const GROUPS: readonly By[] = ['notebook', 'user', 'project', 'marketplace', 'gpu'];

const STATE = 'jupyter-gpumarket:sidebar';

export interface Layout {
  readonly tab: TabName;
  readonly period: Period;
  readonly by: By;
}

const USUAL: Layout = { tab: 'offers', period: 'today', by: 'notebook' };

/** Whatever was kept, by this version or another; what cannot be used is as usual. */
export function layout(value: unknown): Layout {
  const given = typeof value === 'object' && value !== null ? (value as Readonly<Record<string, unknown>>) : {};
  return {
    tab: TABS.find(one => one === given['tab']) ?? USUAL.tab,
    period: PERIODS.find(one => one === given['period']) ?? USUAL.period,
    by: GROUPS.find(one => one === given['by']) ?? USUAL.by
  };
}

export class KeptLayout {
  now: Layout = USUAL;

  constructor(private readonly state: IStateDB | null) {}

  async read(): Promise<void> {
    this.now = layout(await this.state?.fetch(STATE).catch(() => undefined));
  }

  keep(more: Partial<Layout>): void {
    this.now = { ...this.now, ...more };
    void this.state?.save(STATE, { ...this.now });
  }
}
