/** Bundles the tests (their imports name no file extensions) and runs them with Node's own test runner. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { build } from 'esbuild';

const folder = mkdtempSync(join(tmpdir(), 'gm-tests-'));
try {
  const tests = readdirSync('test').filter(name => name.endsWith('.test.ts'));
  await build({
    entryPoints: tests.map(name => join('test', name)),
    outdir: folder,
    outExtension: { '.js': '.mjs' },
    bundle: true,
    platform: 'node',
    format: 'esm',
    loader: { '.css': 'text' },
    logLevel: 'warning'
  });
  const files = tests.map(name => join(folder, name.replace(/\.ts$/, '.mjs')));
  const run = spawnSync(process.execPath, ['--test', ...files], { stdio: 'inherit' });
  process.exitCode = run.status ?? 1;
} finally {
  rmSync(folder, { recursive: true, force: true });
}
