/** What was typed into a dialog, as values. Pure. */
import type { Aim } from './fanout';
import { parseUsd } from './format';

/** Totals out of what was typed; null when it cannot be read. */
export function totals(hours: string, budget: string): { max_s: number; budget_nusd: number } | null {
  const amount = parseUsd(budget);
  const count = /^\d{1,4}(\.\d{1,4})?$/.test(hours.trim()) ? Number(hours) : 0;
  return amount === null || amount === 0 || count <= 0 ? null : { max_s: Math.round(count * 3600), budget_nusd: amount };
}

/** The fields of a question about a cluster's size, as typed. */
export interface AimFields {
  readonly minimum: string;
  readonly maximum: string;
  readonly price: string;
  readonly finish: string;
  readonly budget: string;
}

const MOST_NODES = 1000;

/** The aim and the budget that were typed, or the name of the field that cannot be read. */
export function aimOf(typed: AimFields, nowMs: number): { aim: Aim; budget_nusd: number } | 'nodes' | 'price' | 'finish' | 'budget' {
  const [minimum, maximum] = [nodes(typed.minimum), nodes(typed.maximum)];
  if (minimum === null || maximum === null || maximum < minimum) {
    return 'nodes';
  }
  const price = typed.price.trim() === '' ? null : parseUsd(typed.price);
  if (price === 0 || (price === null && typed.price.trim() !== '')) {
    return 'price';
  }
  const finish = typed.finish.trim() === '' ? null : nextTime(typed.finish, nowMs);
  if (finish === null && typed.finish.trim() !== '') {
    return 'finish';
  }
  const budget = parseUsd(typed.budget);
  return budget === null || budget === 0
    ? 'budget'
    : { aim: { minimum, maximum, max_nusd_hour: price, finish_by_ms: finish }, budget_nusd: budget };
}

function nodes(text: string): number | null {
  const count = /^\d{1,4}$/.test(text.trim()) ? Number(text) : 0;
  return count >= 1 && count <= MOST_NODES ? count : null;
}

/** Today at this time of day by this computer's clock, or tomorrow when that has passed. */
function nextTime(text: string, nowMs: number): number | null {
  const found = /^([01]?\d|2[0-3]):([0-5]\d)$/.exec(text.trim());
  if (found === null) {
    return null;
  }
  const at = new Date(nowMs);
  at.setHours(Number(found[1]), Number(found[2]), 0, 0);
  if (at.getTime() <= nowMs) {
    at.setDate(at.getDate() + 1);
  }
  return at.getTime();
}
