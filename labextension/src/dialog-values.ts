/** What was typed into a dialog, as values. Pure. */
import { parseUsd } from './format';

/** Totals out of what was typed; null when it cannot be read. */
export function totals(hours: string, budget: string): { max_s: number; budget_nusd: number } | null {
  const amount = parseUsd(budget);
  const count = /^\d{1,4}(\.\d{1,4})?$/.test(hours.trim()) ? Number(hours) : 0;
  return amount === null || amount === 0 || count <= 0 ? null : { max_s: Math.round(count * 3600), budget_nusd: amount };
}
