/**
 * The Offers view as a widget of a notebook, wherever notebooks are shown: its data come over the widget's comm from the
 * kernel, so it needs no Jupyter server with our extension. `jupyter_gpumarket/notebook/picker.py` is the other side.
 */
import { ApiError } from './api';
import { DOLLARS } from './format';
import type { OfferColumns } from './offers/columns';
import { newId, type OffersSource } from './offers/source';
import type { Defaults, LeaseView } from './types';
import { OffersPane } from './views/offers-pane';
import { plainWords } from './words';

/** What we use of anywidget's model. */
interface WidgetModel {
  get(name: string): unknown;
  set(name: string, value: unknown): void;
  save_changes(): void;
  send(content: unknown): void;
  on(event: 'msg:custom', act: (message: unknown, buffers: DataView[]) => void): void;
  on(event: string, act: () => void): void;
  off(event: string, act: unknown): void;
}

interface Answer {
  id: string;
  value?: unknown;
  error?: { message: string; status: number; kind: string };
}

/** Longer than any answer takes: a kernel that is gone never answers. */
const PATIENCE_MS = 120_000;

/** Asks the kernel, and keeps who waits for which answer. */
class Comm implements OffersSource {
  constructor(private readonly model: WidgetModel) {
    model.on('msg:custom', this.heard);
  }

  columns(refresh: boolean): Promise<OfferColumns> {
    return this.ask<OfferColumns>('columns', { refresh });
  }

  defaults(): Promise<Defaults> {
    return this.ask<Defaults>('defaults', {});
  }

  rent(wish: object): Promise<LeaseView> {
    return this.ask<LeaseView>('rent', { wish });
  }

  lease(lease: string, after_seq: number, wait_s: number): Promise<LeaseView> {
    return this.ask<LeaseView>('lease', { lease, after_seq, wait_s });
  }

  release(lease: string, reason: string): Promise<LeaseView> {
    return this.ask<LeaseView>('release', { lease, reason });
  }

  dispose(): void {
    this.model.off('msg:custom', this.heard);
    this.waiting.clear();
  }

  private ask<T>(what: string, more: object): Promise<T> {
    const id = newId();
    return new Promise<T>((resolve, reject) => {
      const timer = setTimeout(() => {
        this.waiting.delete(id);
        reject(new ApiError('The kernel does not answer: it is busy with a cell, or gone. What is rented goes on and bills.', 0));
      }, PATIENCE_MS);
      this.waiting.set(id, (answer, buffers) => {
        clearTimeout(timer);
        if (answer.error) {
          reject(new ApiError(answer.error.message, answer.error.status, answer.error.kind));
        } else {
          resolve((buffers[0] ? parsed(buffers[0]) : answer.value) as T);
        }
      });
      this.model.send({ id, ask: what, ...more });
    });
  }

  private readonly heard = (message: unknown, buffers: DataView[]): void => {
    const answer = message as Answer;
    const act = this.waiting.get(answer.id);
    if (act) {
      this.waiting.delete(answer.id);
      act(answer, buffers);
    }
  };

  private readonly waiting = new Map<string, (answer: Answer, buffers: DataView[]) => void>();
}

/** A long answer comes as bytes of JSON beside the message, where no front end looks into it. */
function parsed(bytes: DataView): unknown {
  return JSON.parse(new TextDecoder().decode(bytes));
}

function render({ model, el }: { model: WidgetModel; el: HTMLElement }): () => void {
  const comm = new Comm(model);
  const host = document.createElement('div');
  host.className = 'gm-Root gm-Picker';
  host.style.height = `${Number(model.get('height_px')) || 480}px`;
  el.append(host);
  const keeping = {
    state: model.get('_state'),
    save: (state: unknown): void => share(model, '_state', state)
  };
  const pane = new OffersPane(host, comm, keeping, () => ({ words: plainWords, currency: DOLLARS }));
  pane.model.selectKey(String(model.get('_selected') ?? ''));
  const endListening = pane.model.onChange(() => share(model, '_selected', pane.model.selected));
  const stateCame = (): void => pane.model.setState(model.get('_state'));
  const choiceCame = (): void => pane.model.selectKey(String(model.get('_selected') ?? ''));
  const told = (message: unknown): void => {
    const { tell, budget, hours } = message as { tell?: string; budget?: string; hours?: number };
    if (tell === 'ask to rent') {
      void pane.askToRent({ ...(budget ? { budget } : {}), ...(hours ? { hours } : {}) });
    }
  };
  model.on('change:_state', stateCame);
  model.on('change:_selected', choiceCame);
  model.on('msg:custom', told);
  // Outside of what can be seen, nothing is fetched and nothing drawn.
  const seen = new IntersectionObserver(entries => pane.setVisible(entries.some(entry => entry.isIntersecting)));
  seen.observe(host);
  return () => {
    seen.disconnect();
    endListening();
    model.off('change:_state', stateCame);
    model.off('change:_selected', choiceCame);
    model.off('msg:custom', told);
    pane.dispose();
    comm.dispose();
  };
}

/** Tell the kernel, unless it knows. */
function share(model: WidgetModel, name: string, value: unknown): void {
  if (JSON.stringify(model.get(name)) !== JSON.stringify(value)) {
    model.set(name, value);
    model.save_changes();
  }
}

export default { render };
