/** What the offers' views need of the world: JupyterLab gives it over HTTP, a notebook's widget over its comm. */
import type { Defaults, LeaseRequest, LeaseView } from '../types';
import type { OfferColumns } from './columns';

export interface OffersSource {
  /** All offers; `refresh` asks the marketplaces anew. */
  columns(refresh: boolean): Promise<OfferColumns>;
  /** What a rental form starts with. */
  defaults(): Promise<Defaults>;
  /** Rent; the same `request_id` twice is one lease. */
  rent(wish: LeaseRequest): Promise<LeaseView>;
  /** A lease, as soon as it has changed after `afterSeq`, or after `waitS` seconds as it is. */
  lease(leaseId: string, afterSeq: number, waitS: number): Promise<LeaseView>;
  /** Ask to give a node back. */
  release(leaseId: string, reason: string): Promise<LeaseView>;
}

/** Where a view keeps its state between sessions. */
export interface Keeping {
  state: unknown;
  save(state: unknown): void;
}

/** A name that nobody else makes. `crypto.randomUUID` is missing on pages that come over plain HTTP; this is not. */
export function newId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), byte => byte.toString(16).padStart(2, '0')).join('');
}
