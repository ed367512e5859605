/** The user's settings in JupyterLab, read with care: whatever cannot be used falls back to what is usual. */
import type { Currency } from './format';
import { DOLLARS, decimalNano } from './format';

export interface Preferences {
  /** Dollars an hour as text; empty: as the broker's settings say. The same for `budget`. */
  readonly maxPrice: string;
  readonly budget: string;
  /** 0: as the broker's settings say. The same for `vramGib`. */
  readonly hours: number;
  readonly vramGib: number;
  readonly askOnRelease: 'always' | 'running';
  readonly refreshMs: number;
  readonly currency: Currency;
  readonly notify: boolean;
  readonly idleMinutes: number;
  readonly showBadges: boolean;
}

export const USUAL: Preferences = {
  maxPrice: '',
  budget: '',
  hours: 0,
  vramGib: 0,
  askOnRelease: 'always',
  refreshMs: 3000,
  currency: DOLLARS,
  notify: true,
  idleMinutes: 10,
  showBadges: true
};

type Raw = Readonly<Record<string, unknown>>;

function amount(value: unknown): string {
  return typeof value === 'string' && decimalNano(value) !== null ? value.trim() : '';
}

function number(value: unknown, least: number, most: number, usual: number): number {
  return typeof value === 'number' && value >= least && value <= most ? value : usual;
}

function currency(code: unknown, rate: unknown): Currency {
  const isCode = typeof code === 'string' && /^[A-Z]{3}$/.test(code) && code !== 'USD';
  return isCode && typeof rate === 'string' && (decimalNano(rate) ?? 0n) > 0n ? { code, rate } : DOLLARS;
}

export function preferences(raw: Raw): Preferences {
  return {
    maxPrice: amount(raw['maxPrice']),
    budget: amount(raw['budget']),
    hours: number(raw['hours'], 0, 24 * 31, USUAL.hours),
    vramGib: number(raw['vramGib'], 0, 10_000, USUAL.vramGib),
    askOnRelease: raw['askOnRelease'] === 'running' ? 'running' : 'always',
    refreshMs: number(raw['refreshSeconds'], 1, 600, USUAL.refreshMs / 1000) * 1000,
    currency: currency(raw['currency'], raw['currencyRate']),
    notify: raw['notify'] !== false,
    idleMinutes: number(raw['idleMinutes'], 1, 1440, USUAL.idleMinutes),
    showBadges: raw['showBadges'] !== false
  };
}
