/**
 * The shapes that the server's routes take and answer, with the names of the Python records. Amounts are integer
 * nano-dollars: exact as JSON numbers up to nine million dollars. Times are milliseconds since 1970 UTC.
 */

export type LeaseState =
  | 'wished'
  | 'quoting'
  | 'renting'
  | 'unconfirmed'
  | 'booting'
  | 'linking'
  | 'preparing'
  | 'probing'
  | 'ready'
  | 'unreachable'
  | 'draining'
  | 'releasing'
  | 'release_unconfirmed'
  | 'released'
  | 'failed';

export type Tier = 'community' | 'verified' | 'datacenter' | 'tee' | 'own';
export type PriceKind = 'on_demand' | 'spot';
export type Scope = 'cell' | 'notebook' | 'user' | 'project';
export type RunStatus = 'queued' | 'running' | 'ok' | 'error' | 'interrupted' | 'timed_out' | 'lost';
export type ChargeKind =
  | 'cell'
  | 'idle'
  | 'boot'
  | 'failed_attempt'
  | 'storage'
  | 'traffic'
  | 'fee'
  | 'adjustment';

export interface Billing {
  readonly quantum_s: number;
  readonly minimum_s: number;
  readonly storage_nusd_gib_hour: number;
  readonly ingress_nusd_gib: number;
  readonly egress_nusd_gib: number;
  readonly fee_nusd: number;
}

export interface NativePrice {
  readonly amount_hour: string;
  readonly currency: string;
  readonly rate: string;
  readonly source: string;
  readonly rate_ms: number;
}

export interface Offer {
  readonly marketplace: string;
  readonly offer_id: string;
  readonly machine_id: string;
  readonly price_nusd_hour: number;
  readonly seen_ms: number;
  readonly kind: PriceKind;
  readonly gpu_raw: string;
  readonly gpu: string | null;
  readonly gpu_count: number;
  readonly vram_gib: number;
  readonly cpu_model: string;
  readonly cpu_cores: number;
  readonly memory_gib: number;
  readonly disk_gib: number;
  readonly region: string;
  readonly country: string;
  readonly tier: Tier;
  readonly cuda: string;
  readonly down_mbps: number;
  readonly up_mbps: number;
  readonly reliability: number | null;
  readonly billing: Billing;
  readonly provider: string;
  readonly native: NativePrice | null;
  readonly boot_s: number | null;
}

export interface OfferQuery {
  readonly gpu?: string | null;
  readonly vram_gib?: number | null;
  readonly gpu_count?: number | null;
  readonly max_price_nusd_hour?: number | null;
  readonly region?: string | null;
  readonly marketplaces?: readonly string[];
  readonly tier?: Tier | null;
  readonly kind?: PriceKind | null;
  readonly cpu_cores?: number | null;
  readonly memory_gib?: number | null;
  readonly disk_gib?: number | null;
  /** This one offer alone; with its marketplace in `marketplaces`. */
  readonly offer_id?: string | null;
}

export interface OfferSearch {
  readonly query?: OfferQuery;
  readonly hours?: number;
  readonly sort?: string;
  readonly refresh?: boolean;
  readonly limit?: number;
  readonly samples?: 'no' | 'auto' | 'yes';
}

export interface FilterStep {
  readonly filter: string;
  readonly before: number;
  readonly after: number;
}

export interface MarketplaceStatus {
  readonly marketplace: string;
  readonly ok: boolean;
  readonly offers: number;
  readonly age_s: number;
  readonly message: string;
}

export interface OfferList {
  readonly offers: readonly Offer[];
  readonly statuses: readonly MarketplaceStatus[];
  readonly steps: readonly FilterStep[];
}

export interface Owner {
  readonly user: string;
  readonly project: string;
  readonly notebook: string;
}

/** POST /gpumarket/leases: the same `request_id` sent twice is one lease. */
export interface LeaseRequest {
  readonly request_id: string;
  readonly query: OfferQuery;
  readonly budget_nusd: number;
  readonly max_s: number;
  readonly owner?: Partial<Owner>;
  readonly name?: string;
  readonly cluster?: string;
  readonly trusted?: boolean;
  readonly grace_s?: number;
}

export interface Attempt {
  readonly marketplace: string;
  readonly offer_id: string;
  readonly machine_id: string;
  readonly started_ms: number;
  readonly ended_ms: number | null;
  readonly ended_in: LeaseState | null;
  readonly reason: string;
  readonly price_nusd_hour: number;
}

export interface Lease {
  readonly lease_id: string;
  readonly name: string;
  readonly state: LeaseState;
  readonly request: LeaseRequest & { readonly owner: Owner };
  readonly created_ms: number;
  readonly changed_ms: number;
  readonly goal: 'node' | 'released' | 'failed';
  readonly offer: Offer | null;
  readonly price_nusd_hour: number;
  readonly deadline_ms: number | null;
  readonly phase_deadline_ms: number | null;
  readonly billed_from_ms: number | null;
  readonly billed_to_ms: number | null;
  readonly ready_ms: number | null;
  readonly phases: Readonly<Record<string, number>>;
  readonly attempts: readonly Attempt[];
  readonly reason: string;
  readonly release_asks: number;
  readonly cluster_id: string;
}

export interface GpuUse {
  readonly index: number;
  readonly name: string;
  readonly use_percent: number;
  readonly memory_used_gib: number;
  readonly memory_total_gib: number;
}

export interface NodeUse {
  readonly at_ms: number;
  readonly cpu_percent: number;
  readonly memory_used_gib: number;
  readonly memory_total_gib: number;
  readonly disk_free_gib: number;
  readonly gpus: readonly GpuUse[];
}

export interface SetupStep {
  readonly name: string;
  readonly state: 'running' | 'done' | 'skipped' | 'failed';
  readonly detail: string;
  readonly took_ms: number;
}

export interface NodeView {
  readonly lease_id: string;
  readonly name: string;
  readonly link: 'connecting' | 'up' | 'lost' | 'closed' | 'refused';
  readonly link_detail: string;
  readonly round_trip_ms: number | null;
  readonly phase: string;
  readonly steps: readonly SetupStep[];
  readonly sessions: readonly string[];
  readonly running: readonly string[];
  readonly use: NodeUse | null;
  readonly last_seen_ms: number | null;
}

export interface LeaseView {
  readonly lease: Lease;
  readonly seq: number;
  readonly cost_nusd: number;
  readonly boot_nusd: number;
  readonly idle_nusd: number;
  readonly worst_case_nusd: number;
  readonly node: NodeView | null;
  readonly notices: readonly string[];
}

export interface Orphan {
  readonly marketplace: string;
  readonly rental_id: string;
  readonly label: string;
  readonly found_ms: number;
  readonly price_nusd_hour: number | null;
  readonly state: 'found' | 'release_asked' | 'gone';
}

export interface Budget {
  readonly scope: Scope;
  readonly key: string;
  readonly limit_nusd: number;
  readonly since_ms: number;
  readonly set_ms: number;
}

export interface BudgetView {
  readonly budget: Budget;
  readonly spent_nusd: number;
  readonly reserved_nusd: number;
}

export interface BudgetSetting {
  readonly scope: Scope;
  readonly key: string;
  readonly limit_nusd: number | null;
  readonly since_ms?: number;
}

export interface Charge {
  readonly charge_id: string;
  readonly lease_id: string;
  readonly kind: ChargeKind;
  readonly amount_nusd: number;
  readonly start_ms: number;
  readonly end_ms: number;
  readonly owner: Owner;
  readonly run_id: string;
  readonly marketplace: string;
  readonly machine_id: string;
  readonly gpu: string;
  readonly gpu_count: number;
  readonly rate_nusd_hour: number;
  readonly final: boolean;
}

export interface CostQuery {
  readonly since_ms?: number;
  readonly until_ms?: number | null;
  readonly lease?: string | null;
}

export interface CostList {
  readonly charges: readonly Charge[];
  readonly as_of_ms: number;
}

export interface CellRun {
  readonly run_id: string;
  readonly lease_id: string;
  readonly session: string;
  readonly status: RunStatus;
  readonly owner: Owner;
  readonly cell_id: string;
  readonly started_ms: number | null;
  readonly ended_ms: number | null;
  readonly reason: string;
}

export interface RunCost {
  readonly run: CellRun;
  readonly node: string;
  readonly duration_ms: number;
  readonly amount_nusd: number;
  readonly rate_nusd_hour: number;
  readonly final: boolean;
  readonly lease_total_nusd: number;
  readonly lease_boot_nusd: number;
  readonly lease_idle_nusd: number;
}

export interface Balance {
  readonly amount_nusd: number;
  readonly native_amount: string;
  readonly native_currency: string;
}

export interface MarketplaceInfo {
  readonly name: string;
  readonly usable: boolean;
  readonly message: string;
  readonly balance: Balance | null;
}

/** What a rental form starts with; amounts are text in dollars, as in the settings file. */
export interface Defaults {
  readonly ask: boolean;
  readonly budget: string;
  readonly hours: number;
  readonly max_price: string;
  readonly project: string;
  readonly user: string;
}

/** A log's last part: a stranger's words, to be shown as text. */
export interface NodeLog {
  readonly lease: string;
  readonly text: string;
  readonly truncated: boolean;
}

/** GET /gpumarket/now: all that the running view and the status bar show, as of one moment. */
export interface Now {
  readonly at_ms: number;
  readonly is_up: boolean;
  readonly message: string;
  readonly leases: readonly LeaseView[];
  readonly orphans: readonly Orphan[];
  readonly budgets: readonly BudgetView[];
  readonly rate_nusd_hour: number;
  readonly spent_today_nusd: number;
}

export interface Problem {
  readonly error: string;
  readonly message: string;
  readonly field: string;
}

export type ExportFormat = 'csv' | 'parquet' | 'html';

/** A file made by the server; `base64` tells how `content` is written. */
export interface CostFile {
  readonly name: string;
  readonly mime: string;
  readonly base64: boolean;
  readonly content: string;
}
