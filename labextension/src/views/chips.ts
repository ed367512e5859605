/** Chips: toggle buttons with counts, one stop for the Tab key, arrow keys between them (roving focus). */
import { html, type TemplateResult } from 'lit';

export interface Chip {
  value: string;
  label: string;
  count: number;
  isOn: boolean;
}

export interface ChipsProps {
  label: string;
  chips: readonly Chip[];
  onToggle(value: string): void;
}

/** A group of chips. */
export function chips({ label, chips: all, onToggle }: ChipsProps): TemplateResult {
  return html`<div class="gm-Chips" role="group" aria-label=${label} @keydown=${rove} @focusin=${remember}>
    ${all.map(
      (chip, i) => html`<button
        type="button"
        class="gm-Chip"
        data-none=${chip.count === 0}
        aria-pressed=${chip.isOn ? 'true' : 'false'}
        tabindex=${i === 0 ? 0 : -1}
        @click=${() => onToggle(chip.value)}
      >
        <span class="gm-Chip-name">${chip.label}</span>
        <span class="gm-Chip-count">${chip.count}</span>
      </button>`
    )}
  </div>`;
}

const STEPS: Readonly<Record<string, number>> = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

function rove(event: KeyboardEvent): void {
  const group = event.currentTarget as HTMLElement;
  const buttons = [...group.querySelectorAll('button')];
  const at = buttons.indexOf(event.target as HTMLButtonElement);
  const step = STEPS[event.key];
  const to = event.key === 'Home' ? 0 : event.key === 'End' ? buttons.length - 1 : step ? at + step : -1;
  const button = buttons[to];
  if (at >= 0 && button) {
    event.preventDefault();
    event.stopPropagation();
    button.focus();
  }
}

/** Tab comes back to the chip that was left. */
function remember(event: FocusEvent): void {
  for (const button of (event.currentTarget as HTMLElement).querySelectorAll('button')) {
    button.tabIndex = button === event.target ? 0 : -1;
  }
}
