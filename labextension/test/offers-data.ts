/** Made-up offers for tests and benchmarks: the same for the same seed, and shaped like the real market. */
import type { Billing, OfferColumns, Texts } from '../src/offers/columns';

export interface Given {
  marketplace?: string;
  gpu?: string;
  gpu_raw?: string;
  region?: string;
  country?: string;
  tier?: string;
  kind?: string;
  offer_id?: string;
  machine_id?: string;
  price_nusd_hour?: number;
  seen_ms?: number;
  gpu_count?: number;
  vram_gib?: number;
  disk_gib?: number;
  reliability?: number | null;
  boot_s?: number | null;
  baseline_nusd_hour?: number | null;
  note?: string;
  billing?: Partial<Billing>;
}

const USUAL: Billing = {
  quantum_s: 1, minimum_s: 0, storage_nusd_gib_hour: 0, ingress_nusd_gib: 0, egress_nusd_gib: 0, fee_nusd: 0
};

/** Columns of some offers, in the given order. */
export function columnsOf(offers: Given[]): OfferColumns {
  const texts = (name: keyof Given, otherwise: string): Texts => {
    const names: string[] = [];
    const codes = offers.map(offer => {
      const text = String(offer[name] ?? otherwise);
      const at = names.indexOf(text);
      return at >= 0 ? at : names.push(text) - 1;
    });
    return { names, codes };
  };
  const numbers = (name: keyof Given, otherwise: number): number[] =>
    offers.map(offer => Number(offer[name] ?? otherwise));
  return {
    as_of_ms: 1_800_000_000_000,
    marketplace: texts('marketplace', 'pool'),
    gpu: texts('gpu', ''),
    gpu_raw: texts('gpu_raw', ''),
    region: texts('region', ''),
    country: texts('country', ''),
    tier: texts('tier', 'community'),
    kind: texts('kind', 'on_demand'),
    provider: texts('marketplace', ''),
    cpu_model: texts('kind', ''),
    cuda: texts('kind', ''),
    offer_id: offers.map((offer, i) => offer.offer_id ?? `offer-${i}`),
    machine_id: offers.map((offer, i) => offer.machine_id ?? `machine-${i}`),
    price_nusd_hour: numbers('price_nusd_hour', 1e9),
    seen_ms: numbers('seen_ms', 1_800_000_000_000),
    gpu_count: numbers('gpu_count', 1),
    vram_gib: numbers('vram_gib', 24),
    cpu_cores: offers.map(() => 8),
    memory_gib: offers.map(() => 32),
    disk_gib: numbers('disk_gib', 0),
    down_mbps: offers.map(() => 100),
    up_mbps: offers.map(() => 100),
    reliability: offers.map(offer => offer.reliability ?? null),
    boot_s: offers.map(offer => offer.boot_s ?? null),
    baseline_nusd_hour: offers.map(offer => offer.baseline_nusd_hour ?? null),
    billing: { kinds: offers.map(offer => ({ ...USUAL, ...offer.billing })), codes: offers.map((_, i) => i) },
    note: texts('note', ''),
    native: [],
    own: [],
    statuses: [],
    baselines: []
  };
}

const MODELS: [string, number, number][] = [
  ['RTX 3090', 24, 0.2], ['RTX 4090', 24, 0.35], ['A100 PCIe 80GB', 80, 1.1], ['A100 SXM 40GB', 40, 0.8],
  ['H100 SXM', 80, 2.1], ['H200', 141, 2.9], ['L40S', 48, 0.7], ['T4', 16, 0.1], ['RTX A6000', 48, 0.5],
  ['B200', 180, 4.4], ['RTX 5090', 32, 0.5], ['V100 PCIe 16GB', 16, 0.2]
];
const MARKETS = ['vast', 'runpod', 'pool', 'akash', 'lium', 'shadeform'];
const REGIONS = ['eu-west', 'us-east', 'us-west', 'ap-south', 'eu-north'];
const TIERS = ['community', 'verified', 'datacenter'];

/** Many offers, cheapest first, as the broker sends them. */
export function manyColumns(count: number, seed = 1): OfferColumns {
  let state = seed;
  const random = (): number => {
    state = (state * 1664525 + 1013904223) % 4294967296;
    return state / 4294967296;
  };
  const pick = <T>(list: T[]): T => list[Math.floor(random() * list.length)]!;
  const offers = Array.from({ length: count }, (): Given => {
    const [gpu, vram_gib, price] = pick(MODELS);
    const gpu_count = pick([1, 1, 1, 2, 4, 8]);
    return {
      marketplace: pick(MARKETS), gpu, gpu_raw: `NVIDIA ${gpu}`, vram_gib, gpu_count, region: pick(REGIONS),
      country: 'XX', tier: pick(TIERS), kind: pick(['on_demand', 'on_demand', 'spot']),
      price_nusd_hour: Math.round(price * gpu_count * (0.6 + random()) * 1e6) * 1e3,
      seen_ms: 1_800_000_000_000 - Math.floor(random() * 300_000), reliability: random(), disk_gib: 100,
      baseline_nusd_hour: Math.round(price * gpu_count * 3e3) * 1e6
    };
  });
  offers.sort((one, other) => one.price_nusd_hour! - other.price_nusd_hour!);
  const columns = columnsOf(offers);
  return { ...columns, billing: { kinds: [{ ...USUAL }], codes: offers.map(() => 0) } };
}
