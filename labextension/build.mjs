/**
 * Bundles `src/` once for each place where it is shown: the JupyterLab plugin (`lib/index.js`, which jupyter-builder makes
 * a federated extension of) and the widget for notebooks anywhere (one ES module in the Python package).
 */
import { existsSync, rmSync } from 'node:fs';
import { readFile } from 'node:fs/promises';

import { build, transform } from 'esbuild';

/** Style sheets as text, without their comments and white space. */
const sheets = {
  name: 'sheets',
  setup: ({ onLoad }) =>
    onLoad({ filter: /\.css$/ }, async ({ path }) => {
      const { code } = await transform(await readFile(path, 'utf8'), { loader: 'css', minify: true });
      return { contents: code, loader: 'text' };
    })
};

const common = {
  bundle: true,
  format: 'esm',
  target: 'es2022',
  minify: true,
  plugins: [sheets],
  // We draw with `render` and define no elements, so the classes for elements stay out.
  alias: { lit: 'lit-html' },
  legalComments: 'none',
  logLevel: 'warning'
};

rmSync('lib', { recursive: true, force: true });
await build({
  ...common,
  entryPoints: ['src/index.ts'],
  // JupyterLab has these already; all else is ours and goes into the bundle.
  external: ['@jupyterlab/*', '@lumino/*'],
  // What is imported when it is needed, such as the Offers view, stays in files of its own.
  splitting: true,
  outdir: 'lib'
});
if (existsSync('src/widget.ts')) {
  await build({ ...common, entryPoints: ['src/widget.ts'], outfile: '../jupyter_gpumarket/static/widget.js' });
}
