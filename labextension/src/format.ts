/** Amounts, times and states as people read them. Money is counted in BigInt: no float ever holds an amount. */
import type { Words } from './words';
import { plainWords } from './words';

export type Amount = number | bigint;

const NUSD_PER_USD = 1_000_000_000n;

/** In which currency amounts are shown. `rate` is a decimal text: units of `code` for one dollar; "1" for dollars. */
export interface Currency {
  readonly code: string;
  readonly rate: string;
}

export const DOLLARS: Currency = { code: 'USD', rate: '1' };

function big(amount: Amount): bigint {
  return typeof amount === 'bigint' ? amount : BigInt(Math.trunc(amount));
}

function grouped(whole: bigint): string {
  return whole.toString().replace(/\B(?=(\d{3})+$)/g, ',');
}

/** Digits of an amount of billionths: at least two places, or exactly `places`, rounded half up. */
function digits(nano: bigint, places?: number): string {
  let left = nano;
  if (places !== undefined) {
    const unit = 10n ** BigInt(9 - places);
    left = ((left + unit / 2n) / unit) * unit;
  }
  const fraction = (left % NUSD_PER_USD).toString().padStart(9, '0');
  const kept = places === undefined ? fraction.replace(/0+$/, '').padEnd(2, '0') : fraction.slice(0, places);
  return grouped(left / NUSD_PER_USD) + (kept === '' ? '' : `.${kept}`);
}

/**
 * Dollars for people: `$1.25`, `-$0.000291667`. Without `places`, at least cents and then as many digits as the amount
 * really has.
 */
export function usd(amount: Amount, places?: number): string {
  const nano = big(amount);
  const size = nano < 0n ? -nano : nano;
  return `${nano < 0n ? '-' : ''}$${digits(size, places)}`;
}

/** Dollars in few digits: cents from a dollar on, and below that as many places as show two digits that count. */
export function usdShort(amount: Amount): string {
  const nano = big(amount);
  const size = nano < 0n ? -nano : nano;
  if (size >= NUSD_PER_USD / 10n || size === 0n) {
    return usd(nano, 2);
  }
  const firstDigit = 10 - size.toString().length; // the place of the first digit that is not zero
  return usd(nano, Math.min(9, firstDigit + 1));
}

/** An amount in the currency of the settings; another one than dollars is marked as a conversion. */
export function money(amount: Amount, currency: Currency = DOLLARS): string {
  if (currency.code === 'USD') {
    return usdShort(amount);
  }
  const rate = decimalNano(currency.rate);
  if (rate === null || rate <= 0n) {
    return usdShort(amount);
  }
  const nano = (big(amount) * rate) / NUSD_PER_USD;
  return `≈ ${usdShort(nano).replace('$', '')} ${currency.code}`;
}

/** Billionths of a plain decimal text such as `12.5`; null when it is not one, or finer than a billionth. */
export function decimalNano(text: string): bigint | null {
  const found = /^(\d{1,9})(?:\.(\d{1,9}))?$/.exec(text.trim());
  if (found === null) {
    return null;
  }
  return BigInt(found[1] ?? '0') * NUSD_PER_USD + BigInt((found[2] ?? '').padEnd(9, '0'));
}

/** Nano-dollars of what somebody typed, such as `2.50` or `$2.50`; null when it is no amount. */
export function parseUsd(text: string): number | null {
  const nano = decimalNano(text.trim().replace(/^\$/, ''));
  return nano === null || nano > BigInt(Number.MAX_SAFE_INTEGER) ? null : Number(nano);
}

/** Dollars as a person would type them: `2.50`. */
export function typedUsd(amount: Amount): string {
  return usd(amount).replace(/[$,]/g, '');
}

export function rate(amountHour: Amount, currency: Currency = DOLLARS, words: Words = plainWords): string {
  return words.__('%1/h', money(amountHour, currency));
}

const UNITS: readonly (readonly [number, string])[] = [
  [86_400_000, 'd'],
  [3_600_000, 'h'],
  [60_000, 'min'],
  [1000, 's']
];

/** `1 d 4 h`, `2 h 5 min`, `41 s`: the two largest units. Below a second, `0 s`. */
export function duration(ms: number): string {
  let left = Math.max(0, Math.floor(ms / 1000) * 1000);
  const parts: string[] = [];
  for (const [unit, name] of UNITS) {
    const n = Math.floor(left / unit);
    left -= n * unit;
    if (n > 0) {
      parts.push(`${n} ${name}`);
    }
    if (parts.length > 0 && (n === 0 || parts.length === 2)) {
      break;
    }
  }
  return parts.join(' ') || '0 s';
}

/** How long ago, for data whose age matters: `now` under two seconds. */
export function age(ms: number, words: Words = plainWords): string {
  return ms < 2000 ? words.__('now') : words.__('%1 ago', duration(ms));
}

export function percent(part: number, whole: number): number {
  return whole > 0 ? Math.min(100, Math.max(0, (100 * part) / whole)) : 0;
}

export function gib(amount: number): string {
  return amount >= 10 ? `${Math.round(amount)} GiB` : `${Math.round(amount * 10) / 10} GiB`;
}

/** The end of a path, which tells notebooks apart: `…/project/one.ipynb`. */
export function shortPath(path: string): string {
  const parts = path.split('/');
  return parts.length <= 2 ? path : `…/${parts.slice(-2).join('/')}`;
}

/** `2.3 of 24 GiB`. */
export function ofGib(used: number, whole: number): string {
  return `${gib(used).replace(' GiB', '')} of ${gib(whole)}`;
}

/** A stranger's text on one line, shortened: control and direction characters are shown as dots, never obeyed. */
export function oneLine(text: string, limit = 120): string {
  const flat = text
    .slice(0, limit * 4)
    .replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g, c => (/\s/.test(c) ? ' ' : '·'))
    .replace(/\s+/g, ' ')
    .trim();
  return flat.length <= limit ? flat : `${flat.slice(0, limit - 1)}…`;
}
