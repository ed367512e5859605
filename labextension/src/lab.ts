/** The page that we live in: its clock, its timers, and whether anybody can see it. */
import type { Surroundings } from './live';

export function surroundings(): Surroundings {
  return {
    nowMs: () => Date.now(),
    later: (ms, act) => {
      const timer = window.setTimeout(act, ms);
      return () => window.clearTimeout(timer);
    },
    isHidden: () => document.hidden
  };
}

/** Calls back whenever the page can be seen again. */
export function onSeen(act: () => void): void {
  document.addEventListener('visibilitychange', () => {
    if (!document.hidden) {
      act();
    }
  });
}
