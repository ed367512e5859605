/** What a cell remembers of its last run on a GPU, and how that is told. Pure. */
import { money } from './format';
import type { Currency } from './format';
import type { Words } from './words';

/** The one key that is ours, in a cell's metadata and in the metadata of its outputs. */
export const KEY = 'jupyter_gpumarket';

export interface Remembered {
  readonly run_id: string;
  readonly node: string;
  /** Null as long as it runs. */
  readonly amount_nusd: number | null;
  readonly final: boolean;
}

/** What a kernel announced or a notebook kept; null when it is not what it should be. Both may come from strangers. */
export function remembered(value: unknown): Remembered | null {
  if (typeof value !== 'object' || value === null) {
    return null;
  }
  const given = value as Readonly<Record<string, unknown>>;
  const { run_id: run, node, amount_nusd: amount, final } = given;
  if (typeof run !== 'string' || !/^[\w-]{1,64}$/.test(run)) {
    return null;
  }
  return {
    run_id: run,
    node: typeof node === 'string' ? node.slice(0, 100) : '',
    amount_nusd: typeof amount === 'number' && Number.isSafeInteger(amount) ? amount : null,
    final: final === true
  };
}

export function isSame(a: Remembered | null, b: Remembered | null): boolean {
  return a?.run_id === b?.run_id && a?.amount_nusd === b?.amount_nusd && a?.final === b?.final && a?.node === b?.node;
}

/** Whether a cell's code is one for a GPU. */
export function isForGpu(source: string): boolean {
  return /^\s*%%gpu(\s|$)/.test(source);
}

/** The cell's code with the magic on top; unchanged where it is there already. */
export function withMagic(source: string): string {
  return isForGpu(source) ? source : `%%gpu\n${source}`;
}

export function badgeText(of: Remembered, words: Words, currency: Currency): string {
  if (of.amount_nusd === null) {
    return words.__('on %1', of.node);
  }
  const amount = money(of.amount_nusd, currency);
  return of.final ? amount : words.__('%1 so far', amount);
}
