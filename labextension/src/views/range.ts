/**
 * A slider with two ends over the histogram of what lies behind it. Two native range inputs, so that keyboard, touch
 * and screen readers work as everywhere; the bars are decoration, their figures are in the inputs' texts.
 */
import { html, nothing, svg, type TemplateResult } from 'lit';

export interface RangeProps {
  id: string;
  label: string;
  /** What the whole range is called now, such as `$0.10 to $2.00`. */
  shown: string;
  /** Count of offers in each bin; a bin is one step of the slider. */
  bins: ArrayLike<number>;
  /** The chosen first and last bin, both included. */
  low: number;
  high: number;
  lowName: string;
  highName: string;
  lowText: string;
  highText: string;
  onChange(low: number, high: number): void;
}

/** The slider. */
export function range(props: RangeProps): TemplateResult {
  const last = props.bins.length - 1;
  const lowest = (event: Event): void => {
    const low = Math.min(valueOf(event), props.high);
    keepBelow(event, low);
    props.onChange(low, props.high);
  };
  const highest = (event: Event): void => {
    const high = Math.max(valueOf(event), props.low);
    keepBelow(event, high);
    props.onChange(props.low, high);
  };
  const input = (value: number, name: string, text: string, act: (event: Event) => void): TemplateResult => html`<input
    type="range"
    min="0"
    max=${last}
    step="1"
    .value=${String(value)}
    aria-label=${name}
    aria-valuetext=${text}
    @input=${act}
  />`;
  return html`<div class="gm-Range" role="group" aria-label=${props.label}>
    <div class="gm-Range-head"><span>${props.label}</span><span class="gm-Range-shown">${props.shown}</span></div>
    ${histogram(props)}
    <div class="gm-Range-inputs">
      ${input(props.low, props.lowName, props.lowText, lowest)} ${input(props.high, props.highName, props.highText, highest)}
    </div>
  </div>`;
}

const HEIGHT = 100;

function histogram({ bins, low, high }: RangeProps): TemplateResult {
  let most = 1;
  for (let i = 0; i < bins.length; i++) {
    most = Math.max(most, bins[i] ?? 0);
  }
  return html`<svg
    class="gm-Range-bars"
    viewBox="0 0 ${bins.length} ${HEIGHT}"
    preserveAspectRatio="none"
    aria-hidden="true"
    focusable="false"
  >
    ${svg`<path class="gm-Range-out" d=${bars(bins, most, i => i < low || i > high)}></path>
      <path class="gm-Range-in" d=${bars(bins, most, i => i >= low && i <= high)}></path>`}
  </svg>`;
}

/** One path for all bars: two elements to change while a slider moves. */
function bars(bins: ArrayLike<number>, most: number, holds: (bin: number) => boolean): string | typeof nothing {
  const parts: string[] = [];
  for (let i = 0; i < bins.length; i++) {
    const count = bins[i] ?? 0;
    if (count > 0 && holds(i)) {
      // The square root lets a bin with a few offers be seen beside one with thousands.
      const height = Math.max(4, Math.round(HEIGHT * Math.sqrt(count / most)));
      parts.push(`M${i + 0.1} ${HEIGHT}v${-height}h.8v${height}z`);
    }
  }
  return parts.join('') || 'M0 0';
}

function valueOf(event: Event): number {
  return Number((event.target as HTMLInputElement).value);
}

/** A slider's end does not pass the other end. */
function keepBelow(event: Event, value: number): void {
  (event.target as HTMLInputElement).value = String(value);
}
