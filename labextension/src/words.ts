/** Words for people, in the reader's language: what JupyterLab's translation bundles can do, as far as we use it. */

export interface Words {
  /** A sentence; %1, %2 ... are replaced by the arguments, and %% by %: what needs two comes as an argument. */
  __(text: string, ...values: (string | number)[]): string;
  /** Singular or plural by a number, which is also %1. */
  _n(one: string, many: string, n: number, ...values: (string | number)[]): string;
}

function filled(text: string, values: readonly (string | number)[]): string {
  return text.replace(/%(%|\d+)/g, (whole, what: string) => (what === '%' ? '%' : String(values[Number(what) - 1] ?? whole)));
}

/** English as it is written in the source: for the widget, for tests, and where no translator is there. */
export const plainWords: Words = {
  __: (text, ...values) => filled(text, values),
  _n: (one, many, n, ...values) => filled(n === 1 ? one : many, [n, ...values])
};
