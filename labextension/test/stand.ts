/** Leases and sights as the server would tell them, for tests. */
import type { Lease, LeaseState, LeaseView, Now, Offer } from '../src/types';

export const T0 = 1_800_000_000_000;

export function offer(more: Partial<Offer> = {}): Offer {
  return {
    marketplace: 'pool',
    offer_id: 'o1',
    machine_id: 'm1',
    price_nusd_hour: 3_600_000_000,
    seen_ms: T0,
    kind: 'on_demand',
    gpu_raw: '',
    gpu: 'H100',
    gpu_count: 1,
    vram_gib: 80,
    cpu_model: '',
    cpu_cores: 8,
    memory_gib: 64,
    disk_gib: 100,
    region: 'eu',
    country: 'DE',
    tier: 'own',
    cuda: '',
    down_mbps: 0,
    up_mbps: 0,
    reliability: null,
    billing: {
      quantum_s: 1,
      minimum_s: 0,
      storage_nusd_gib_hour: 0,
      ingress_nusd_gib: 0,
      egress_nusd_gib: 0,
      fee_nusd: 0
    },
    provider: '',
    native: null,
    boot_s: null,
    ...more
  };
}

export function view(state: LeaseState = 'ready', more: Partial<LeaseView> = {}, lease: Partial<Lease> = {}): LeaseView {
  return {
    lease: {
      lease_id: 'l1',
      name: 'owl',
      state,
      request: {
        request_id: 'r1',
        query: {},
        budget_nusd: 10_000_000_000,
        max_s: 3600,
        owner: { user: 'ada', project: 'p', notebook: 'n.ipynb' }
      },
      created_ms: T0,
      changed_ms: T0,
      goal: 'node',
      offer: offer(),
      price_nusd_hour: 3_600_000_000,
      deadline_ms: T0 + 3_600_000,
      phase_deadline_ms: null,
      billed_from_ms: T0,
      billed_to_ms: null,
      ready_ms: T0,
      phases: {},
      attempts: [],
      reason: '',
      release_asks: 0,
      cluster_id: 'c1',
      ...lease
    },
    seq: 1,
    cost_nusd: 1_000_000,
    boot_nusd: 0,
    idle_nusd: 0,
    worst_case_nusd: 10_000_000_000,
    node: null,
    notices: [],
    ...more
  };
}

export function now(more: Partial<Now> = {}): Now {
  return {
    at_ms: T0,
    is_up: true,
    message: '',
    leases: [view()],
    orphans: [],
    budgets: [],
    rate_nusd_hour: 3_600_000_000,
    spent_today_nusd: 5_000_000,
    ...more
  };
}
