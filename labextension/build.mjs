/**
 * Bundles `src/` once for each place where it is shown: the JupyterLab plugin (`lib/index.js`, which jupyter-builder makes
 * a federated extension of) and the widget for notebooks anywhere (one ES module in the Python package).
 */
import { existsSync } from 'node:fs';

import { build } from 'esbuild';

const common = {
  bundle: true,
  format: 'esm',
  target: 'es2022',
  minify: true,
  loader: { '.css': 'text' },
  legalComments: 'none',
  logLevel: 'warning'
};

await build({
  ...common,
  entryPoints: ['src/index.ts'],
  // JupyterLab has these already; all else is ours and goes into the bundle.
  external: ['@jupyterlab/*', '@lumino/*'],
  outfile: 'lib/index.js'
});
if (existsSync('src/widget.ts')) {
  await build({ ...common, entryPoints: ['src/widget.ts'], outfile: '../jupyter_gpumarket/static/widget.js' });
}
