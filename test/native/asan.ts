/**
 * Runs the tests that reach the addon against its AddressSanitizer build: `node native/build.ts --asan && node
 * test/native/asan.ts`. The sanitizer's runtime is preloaded, because node itself is built without it; leak detection
 * is off, because node's own leaks would hide ours.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { globSync } from 'node:fs';
import { join } from 'node:path';
import { ASAN_ADDON_PATH, buildNative } from '../../native/build.ts';

const ROOT = join(import.meta.dirname, '..', '..');
const TESTS = [
  // One of them builds a program with ThreadSanitizer, which cannot be combined with this one.
  ...globSync('test/native/*.test.ts', { cwd: ROOT }).filter((test) => !test.endsWith('/threads.test.ts')),
  ...globSync('test/export/{fuse,nbd}/*.test.ts', { cwd: ROOT }),
];
/** A test's children are sanitized too, and everything is several times slower. */
const TIMEOUT_S = 240;

const { ok, text } = buildNative(true);
if (!ok) {
  console.error(text);
  process.exit(1);
}
const runtime = execFileSync('g++', ['-print-file-name=libasan.so'], { encoding: 'utf8' }).trim();
const env = {
  ...process.env,
  LAZYDISK_NATIVE: ASAN_ADDON_PATH,
  LD_PRELOAD: runtime,
  TAP_TIMEOUT: String(TIMEOUT_S),
  ASAN_OPTIONS: 'detect_leaks=0:abort_on_error=0:exitcode=99',
};
for (const test of TESTS.sort()) {
  const started = performance.now();
  const { status, signal, stdout, stderr } = spawnSync(process.execPath, [test], {
    cwd: ROOT,
    env,
    encoding: 'utf8',
    timeout: TIMEOUT_S * 1000,
    maxBuffer: 64 * 1024 * 1024,
  });
  const passed = status === 0 && !stderr.includes('AddressSanitizer');
  console.log(
    `${passed ? 'ok' : 'not ok'} - ${test} (${((performance.now() - started) / 1000).toFixed(1)} s)`,
  );
  if (passed) continue;
  console.log(`exited with ${status ?? signal}\n${stdout.slice(-8000)}\n${stderr.slice(-8000)}`);
  process.exitCode = 1;
}
