/**
 * The request grammar `names:memory:count`, read as `jupyter_gpumarket/offers/grammar.py` reads it; a shared table of
 * cases holds the two together. Names are matched against the models that are listed, so no table of GPUs is needed.
 */

/** Drivers report up to 8 % less than what is marketed. */
export const VRAM_TOLERANCE = 0.09;

/** What a request means. Memory is GiB a GPU, both ends included; null: not asked. */
export interface GpuWish {
  names: readonly string[] | null;
  vramLow: number | null;
  vramHigh: number | null;
  countLow: number | null;
  countHigh: number | null;
  withGpu: boolean;
  withoutGpu: boolean;
}

const ANYTHING: GpuWish = {
  names: null, vramLow: null, vramHigh: null, countLow: null, countHigh: null, withGpu: false, withoutGpu: false
};

const MEMORY = /^(\d+(?:\.\d+)?)?(?:gi?b)?(\.\.)?(\d+(?:\.\d+)?)?(?:gi?b)?$/i;
const COUNT = /^(\d+)?(\.\.)?(\d+)?$/;

/** The request, or null when the text is none. Names are not yet checked: see `meansModel`. */
export function readWish(text: string): GpuWish | null {
  let parts = text.trim().split(':').map(part => part.trim());
  if (!text.trim()) {
    return ANYTHING;
  }
  if (parts.length > 3) {
    return null;
  }
  const word = (parts[0] ?? '').toLowerCase();
  if (word === 'none') {
    return parts.length > 1 ? null : { ...ANYTHING, withoutGpu: true };
  }
  if (looksLikeMemory(parts[0] ?? '')) {
    parts = ['', ...parts];
  }
  if (parts.length > 3) {
    return null;
  }
  const [names = '', memory = '', count = ''] = parts;
  const vram = bounds(MEMORY, memory, false);
  const gpus = bounds(COUNT, count, true);
  if (vram === null || gpus === null) {
    return null;
  }
  return {
    names: word === 'any' || !names ? null : names.split(/[|,]/).map(name => name.trim()).filter(name => name),
    vramLow: vram.low === null ? null : vram.low * (1 - VRAM_TOLERANCE),
    vramHigh: vram.high,
    countLow: gpus.low,
    countHigh: gpus.high,
    withGpu: true,
    withoutGpu: false
  };
}

/** Whether a wanted name such as "A100", "rtx4090" or "H100 SXM" means this model or marketplace's spelling. */
export function meansModel(wanted: string, model: string): boolean {
  const asked = splitName(wanted);
  const words = splitName(model);
  return (
    asked.length > 0 &&
    asked.length <= words.length &&
    asked.every((word, i) => word === words[i]) &&
    words.slice(asked.length).every(word => VARIANT.test(word))
  );
}

const NOISE = /^(?:nvidia|geforce|tesla|amd|instinct|radeon)\s+/;
const MAKER_LINE = /^(?:rtx|gtx|quadro rtx|quadro)\s+/;
/** Words after a family's name that tell a variant of the same card, not another model. */
const VARIANT = /^(?:\d+gb|pcie|sxm\d?|nvl|\(modified\))$/;

function splitName(name: string): string[] {
  let words = name.trim().toLowerCase().replace(/[\s_-]+/g, ' ');
  for (let shorter = words.replace(NOISE, ''); shorter !== words; shorter = words.replace(NOISE, '')) {
    words = shorter;
  }
  const spaced = words.replace(/\b(rtx|gtx)(?=\w*\d)/g, '$1 ');
  return spaced.replace(MAKER_LINE, '').split(/\s+/).filter(word => word);
}

function looksLikeMemory(part: string): boolean {
  return /^(\d|\.\.)/.test(part) && /gi?b/i.test(part) && MEMORY.test(part);
}

function bounds(pattern: RegExp, part: string, exact: boolean): { low: number | null; high: number | null } | null {
  if (!part) {
    return { low: null, high: null };
  }
  const found = pattern.exec(part);
  if (!found || !(found[1] || found[3])) {
    return null;
  }
  const low = found[1] ? Number(found[1]) : null;
  let high = found[3] ? Number(found[3]) : null;
  if (exact && !found[2]) {
    high = low;
  }
  return low !== null && high !== null && low > high ? null : { low, high };
}
