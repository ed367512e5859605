/**
 * What *this* job costs on an offer, all in: the time by the marketplace's own billing rule, the machine's start, disk,
 * traffic both ways, fees. Whole nano-dollars, reckoned as the broker does (`offers/job.py`); a shared table of cases
 * holds the two together, so that a slider need not ask the broker.
 */
import { billingAt, type Billing, type OfferTable } from './columns';

/** A job: how long it computes, and how many GiB go in and out. */
export interface Job {
  hours: number;
  inGib: number;
  outGib: number;
}

/** The parts of a price, in nano-dollars; `total` is their sum. */
export interface PriceParts {
  time: number;
  boot: number;
  storage: number;
  trafficIn: number;
  trafficOut: number;
  fee: number;
  total: number;
}

const HOUR_S = 3600;
const MIB = 1024;

/** The parts of what a job costs on one offer. */
export function priceParts(table: OfferTable, row: number, job: Job): PriceParts {
  const billing = billingAt(table, row);
  const rate = table.numbers.price_nusd_hour[row]!;
  const jobS = Math.max(1, Math.ceil(job.hours * HOUR_S));
  const bootS = table.numbers.boot_s[row]!;
  const allS = jobS + (Number.isNaN(bootS) ? 0 : bootS);
  const diskMib = Math.round((table.numbers.disk_gib[row] || 0) * MIB);
  const time = cost(rate, billed(jobS, billing));
  const parts = {
    time,
    boot: cost(rate, billed(allS, billing)) - time,
    storage: cost(Math.floor((billing.storage_nusd_gib_hour * diskMib) / MIB), allS),
    trafficIn: Math.ceil((billing.ingress_nusd_gib * Math.round(job.inGib * MIB)) / MIB),
    trafficOut: Math.ceil((billing.egress_nusd_gib * Math.round(job.outGib * MIB)) / MIB),
    fee: billing.fee_nusd
  };
  return { ...parts, total: Object.values(parts).reduce((sum, part) => sum + part) };
}

/** What a job costs on one offer, all in. */
export function jobPrice(table: OfferTable, row: number, job: Job): number {
  return priceParts(table, row, job).total;
}

/** A time as the marketplace bills it: full quanta, at least the minimum. Seconds. */
export function billed(seconds: number, billing: Billing): number {
  const quantum = Math.max(1, billing.quantum_s);
  return Math.max(Math.ceil(seconds / quantum) * quantum, billing.minimum_s);
}

/**
 * What a time costs at an hourly rate, rounded up to the nano-dollar. Split so that no product leaves the exact
 * integers of a double while the result is below nine million dollars.
 */
export function cost(nusdHour: number, seconds: number): number {
  const rest = nusdHour % HOUR_S;
  return ((nusdHour - rest) / HOUR_S) * seconds + Math.ceil((rest * seconds) / HOUR_S);
}
