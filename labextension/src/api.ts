/** The one module that asks the server. It knows routes and errors; how a request travels is told by `Send`. */
import type { Aim, ClusterNow, FanOut, MapView } from './fanout';
import type { OfferColumns } from './offers/columns';
import type {
  BudgetSetting,
  BudgetView,
  CostFile,
  CostList,
  CostQuery,
  Defaults,
  ExportFormat,
  LeaseRequest,
  LeaseView,
  MarketplaceInfo,
  NodeLog,
  Now,
  OfferList,
  OfferSearch,
  Problem,
  RunCost
} from './types';

/** Sends a request to a path below the server's base URL, with its token and XSRF header. Rejects without an answer. */
export type Send = (path: string, init: RequestInit) => Promise<Response>;

type Method = 'GET' | 'POST' | 'PUT';

/** What went wrong, in words. `status` is 0 when there was no answer at all. */
export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly kind = '',
    readonly field = ''
  ) {
    super(message);
    this.name = 'ApiError';
  }

  /** Whether nobody answered: what is shown stays, and grows old. */
  get isLost(): boolean {
    return this.status === 0 || this.status === 503;
  }
}

const PREFIX = 'gpumarket';

function isProblem(value: unknown): value is Problem {
  return typeof value === 'object' && value !== null && 'message' in value && typeof value.message === 'string';
}

async function failure(reply: Response): Promise<ApiError> {
  let problem: unknown = null;
  try {
    problem = await reply.json();
  } catch {
    // A proxy answers with a page of its own.
  }
  if (isProblem(problem)) {
    return new ApiError(problem.message, reply.status, problem.error, problem.field);
  }
  const words =
    reply.status === 404
      ? 'The Jupyter server does not know this: is jupyter_gpumarket enabled there, in the same version?'
      : `The Jupyter server answered ${reply.status}.`;
  return new ApiError(words, reply.status);
}

function part(text: string): string {
  return encodeURIComponent(text);
}

export class Api {
  constructor(private readonly send: Send) {}

  /** What is rented and owed now. Without `start`, a broker that does not run is not started, and `is_up` is false. */
  now(start: boolean, signal?: AbortSignal): Promise<Now> {
    return this.get<Now>(start ? 'now?start=1' : 'now', signal);
  }

  defaults(): Promise<Defaults> {
    return this.get<Defaults>('defaults');
  }

  marketplaces(): Promise<readonly MarketplaceInfo[]> {
    return this.get<readonly MarketplaceInfo[]>('marketplaces');
  }

  offers(search: OfferSearch): Promise<OfferList> {
    return this.ask<OfferList>('POST', 'offers', search);
  }

  /** The same by column, for lists of any length. */
  offerColumns(search: OfferSearch): Promise<OfferColumns> {
    return this.ask<OfferColumns>('POST', 'offers/columns', search);
  }

  rent(request: LeaseRequest): Promise<LeaseView> {
    return this.ask<LeaseView>('POST', 'leases', request);
  }

  leases(all: boolean): Promise<readonly LeaseView[]> {
    return this.get<readonly LeaseView[]>(all ? 'leases?all=1' : 'leases');
  }

  /** One lease; with `afterSeq`, waits up to `waitS` seconds for a change. */
  lease(lease: string, afterSeq: number | null = null, waitS = 0, signal?: AbortSignal): Promise<LeaseView> {
    const query = afterSeq === null ? '' : `?after_seq=${afterSeq}&wait_s=${waitS}`;
    return this.get<LeaseView>(`leases/${part(lease)}${query}`, signal);
  }

  release(lease: string, reason: string): Promise<LeaseView> {
    return this.ask<LeaseView>('POST', `leases/${part(lease)}/release`, { reason });
  }

  /** New totals, not increments. */
  extend(lease: string, totals: { max_s?: number; budget_nusd?: number }): Promise<LeaseView> {
    return this.ask<LeaseView>('POST', `leases/${part(lease)}/extend`, totals);
  }

  nodeLog(lease: string): Promise<NodeLog> {
    return this.get<NodeLog>(`leases/${part(lease)}/log`);
  }

  /** Clusters, Dask on them and maps, as of one moment; starts no broker. */
  fanOut(): Promise<FanOut> {
    return this.get<FanOut>('fanout');
  }

  aim({ name, cluster_id }: ClusterNow, aim: Aim, budget_nusd: number | null): Promise<ClusterNow> {
    return this.ask<ClusterNow>('POST', `clusters/${part(name)}/aim`, { cluster_id, aim, budget_nusd });
  }

  endCluster({ name, cluster_id }: ClusterNow): Promise<ClusterNow> {
    return this.ask<ClusterNow>('POST', `clusters/${part(name)}/release`, { cluster_id });
  }

  stopMap(map: string, lease: string): Promise<MapView> {
    return this.ask<MapView>('POST', `maps/${part(map)}/stop`, { lease });
  }

  runs(query: { lease?: string; notebook?: string } = {}): Promise<readonly RunCost[]> {
    const asked = new URLSearchParams(query).toString();
    return this.get<readonly RunCost[]>(asked === '' ? 'runs' : `runs?${asked}`);
  }

  runCost(run: string): Promise<RunCost> {
    return this.get<RunCost>(`runs/${part(run)}/cost`);
  }

  runLog(run: string): Promise<NodeLog> {
    return this.get<NodeLog>(`runs/${part(run)}/log`);
  }

  costs(query: CostQuery): Promise<CostList> {
    return this.ask<CostList>('POST', 'costs', query);
  }

  costFile(format: ExportFormat, query: CostQuery): Promise<CostFile> {
    return this.ask<CostFile>('POST', `costs/export/${format}`, query);
  }

  setBudget(setting: BudgetSetting): Promise<readonly BudgetView[]> {
    return this.ask<readonly BudgetView[]>('PUT', 'budgets', setting);
  }

  private get<T>(path: string, signal?: AbortSignal): Promise<T> {
    return this.ask<T>('GET', path, undefined, signal);
  }

  private async ask<T>(method: Method, path: string, body?: object, signal?: AbortSignal): Promise<T> {
    const init: RequestInit = { method, cache: 'no-store' };
    if (body !== undefined) {
      init.body = JSON.stringify(body);
      init.headers = { 'Content-Type': 'application/json' };
    }
    if (signal) {
      init.signal = signal;
    }
    let reply: Response;
    try {
      reply = await this.send(`${PREFIX}/${path}`, init);
    } catch (error) {
      if (signal?.aborted) {
        throw error;
      }
      throw new ApiError('The Jupyter server does not answer. What is rented goes on and bills.', 0);
    }
    if (!reply.ok) {
      throw await failure(reply);
    }
    return (await reply.json()) as T;
  }
}
