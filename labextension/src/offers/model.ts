/**
 * The model behind the list of offers: a table, a state, and what one pass over the table finds for that state. No
 * DOM, no fetching, no clock; views ask it and are told when it changes.
 */
import { emptyTable, keyOf, offerAt, rowOf, type Offer, type OfferTable } from './columns';
import { groupedLines, orderOf, ordersOtherwise, plainLines, type Lines } from './order';
import { askedOf, binsOf, pass, roomFor, totalsOf, type Asked, type Bins, type Found, type Totals } from './pass';
import { FIRST_STATE, NO_FILTERS, sameState, stateFrom, type Filters, type OffersState } from './state';

/** A part of the window on a long list: which lines to draw, and where they begin. */
export interface Window {
  first: number;
  last: number;
  topPx: number;
  heightPx: number;
}

/** The lines that a scrolled view of a list shows, and some before and after. `last` is not drawn. */
export function windowOf(scrollPx: number, viewPx: number, linePx: number, lines: number, spare = 6): Window {
  const first = Math.max(0, Math.min(lines, Math.floor(scrollPx / linePx)) - spare);
  const last = Math.min(lines, Math.ceil((scrollPx + viewPx) / linePx) + spare);
  return { first, last: Math.max(first, last), topPx: first * linePx, heightPx: lines * linePx };
}

/** All offers, what is asked of them, and what is left of them. */
export class OffersModel {
  constructor(state: unknown = null) {
    this._state = stateFrom(state);
    this._listeners = new Set();
    this.setTable(emptyTable());
  }

  get table(): OfferTable {
    return this._table;
  }

  get state(): OffersState {
    return this._state;
  }

  /** What the last pass found. The arrays are the model's own: read, do not keep. */
  get found(): Found {
    return this._found;
  }

  /** What there is, whatever is asked: all offers by model and by marketplace. */
  get totals(): Totals {
    return this._totals;
  }

  get lines(): Lines {
    return this._lines;
  }

  /** The chosen offer's key; it stays chosen while the list changes under it. */
  get selected(): string {
    return this._selected;
  }

  /** The chosen offer, or null when there is none or it is not listed any more. */
  get selectedOffer(): Offer | null {
    return this._selectedRow < 0 ? null : offerAt(this._table, this._selectedRow);
  }

  get selectedRow(): number {
    return this._selectedRow;
  }

  /** Told after each change; the answer ends that. */
  onChange(listener: () => void): () => void {
    this._listeners.add(listener);
    return () => this._listeners.delete(listener);
  }

  /** A new list; filters, order and choice stay. */
  setTable(table: OfferTable): void {
    this._table = table;
    this._bins = binsOf(table);
    this._totals = totalsOf(table, this._state.filters.samples);
    this._found = roomFor(table);
    this._order = orderOf(table, this._state);
    this._asked = askedOf(table, this._state.filters.text, this._state.filters.region);
    this._selectedRow = this._selected ? rowOf(table, this._selected) : -1;
    this._look();
  }

  /** How many of the listed offers cannot be rented (dated samples, markets without an account). */
  get sampleCount(): number {
    const { note } = this._table.texts;
    return note.codes.reduce((count, code) => count + (note.names[code] ? 1 : 0), 0);
  }

  /** Change what is asked; what is not named stays. */
  update(change: Partial<OffersState>): void {
    this.setState({ ...this._state, ...change });
  }

  filter(change: Partial<Filters>): void {
    this.update({ filters: { ...this._state.filters, ...change } });
  }

  clearFilters(): void {
    this.update({ filters: NO_FILTERS });
  }

  /** Whether any filter is set. */
  get isFiltered(): boolean {
    return !sameState(this._state.filters, FIRST_STATE.filters);
  }

  /** A whole state, from wherever; nothing happens when it is the one there is. */
  setState(value: unknown): void {
    const before = this._state;
    const state = stateFrom(value);
    if (sameState(before, state)) {
      return;
    }
    this._state = state;
    if (ordersOtherwise(state, before)) {
      this._order = orderOf(this._table, state);
    }
    if (state.filters.samples !== before.filters.samples) {
      this._totals = totalsOf(this._table, state.filters.samples);
    }
    if (state.filters.text !== before.filters.text || state.filters.region !== before.filters.region) {
      this._asked = askedOf(this._table, state.filters.text, state.filters.region);
    }
    this._look();
  }

  /** Open or close a group. */
  toggleGroup(name: string): void {
    const open = this._state.open;
    this.update({ open: open.includes(name) ? open.filter(one => one !== name) : [...open, name] });
  }

  /** Choose a row of the table; -1 for none. */
  select(row: number): void {
    this.selectKey(row < 0 ? '' : keyOf(this._table, row));
  }

  selectKey(key: string): void {
    if (key !== this._selected) {
      this._selected = key;
      this._selectedRow = key ? rowOf(this._table, key) : -1;
      this._tell();
    }
  }

  private _look(): void {
    const { _table: table, _found: found } = this;
    pass({ table, bins: this._bins, asked: this._asked, order: this._order }, this._state.filters, found);
    this._lines = this._state.grouped
      ? groupedLines(table, found.rows, found.count, this._state.open)
      : plainLines(found.rows, found.count);
    this._tell();
  }

  private _tell(): void {
    for (const listener of [...this._listeners]) {
      listener();
    }
  }

  private _state: OffersState;
  private _table!: OfferTable;
  private _bins!: Bins;
  private _totals!: Totals;
  private _asked!: Asked;
  private _order!: Uint32Array;
  private _found!: Found;
  private _lines!: Lines;
  private _selected = '';
  private _selectedRow = -1;
  private readonly _listeners: Set<() => void>;
}
