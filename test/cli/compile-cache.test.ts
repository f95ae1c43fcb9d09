/**
 * The launcher's cache of compiled sources: created at the first start, harmless when damaged, never in others'
 * directories.
 */
import { spawnSync } from 'node:child_process';
import {
  chownSync,
  cpSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { diskWorkplace, TestDaemon, tempDir } from '../support/daemon.ts';
import { skipWithoutRoot } from '../support/tools.ts';

const ROOT = join(import.meta.dirname, '..', '..');

/** A separate checkout that uses the packages of this one. */
function checkout(t: Test): { modules: string; start(): string; entries(): string[] } {
  const dir = tempDir(t);
  const modules = join(dir, 'node_modules');
  const cache = join(modules, '.cache', 'lazydisk');
  cpSync(join(ROOT, 'src'), join(dir, 'src'), { recursive: true });
  cpSync(join(ROOT, 'package.json'), join(dir, 'package.json'));
  mkdirSync(modules);
  for (const name of readdirSync(join(ROOT, 'node_modules'))) {
    if (name !== '.cache') symlinkSync(join(ROOT, 'node_modules', name), join(modules, name));
  }
  const env = { ...process.env };
  delete env.NODE_COMPILE_CACHE;
  return {
    modules,
    start() {
      const { status, stdout, stderr } = spawnSync(join(dir, 'src/lazydisk'), ['--help'], {
        env,
        encoding: 'utf8',
      });
      t.same({ status, stderr }, { status: 0, stderr: '' });
      return stdout;
    },
    entries() {
      const found = readdirSync(modules).includes('.cache')
        ? readdirSync(cache, { recursive: true, withFileTypes: true })
        : [];
      return found.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name));
    },
  };
}

t.test('the second start finds what the first one made, and survives its damage', async (t) => {
  const { start, entries } = checkout(t);
  const help = start();
  t.match(help, /^Usage: lazydisk/);
  const made = entries();
  t.ok(made.length > 10, `${made.length} entries`);
  t.equal(start(), help);
  t.same(entries().sort(), made.sort(), 'the same entries, however often it starts');
  for (const [n, entry] of made.entries()) {
    const bytes = readFileSync(entry);
    bytes.fill(n, (n % 3) * 40);
    writeFileSync(entry, n % 2 ? bytes : bytes.subarray(0, bytes.length / 2));
  }
  t.equal(start(), help);
});

t.test('no cache is left in a directory of somebody else, or where there is none', async (t) => {
  if (skipWithoutRoot(t, 'give a directory away')) return;
  const { modules, start, entries } = checkout(t);
  chownSync(modules, 65_534, 65_534);
  t.match(start(), /^Usage: lazydisk/);
  t.same(entries(), []);
  rmSync(modules, { recursive: true });
});

t.test('a daemon that serves has put its own sources there, however it ends', async (t) => {
  const cache = tempDir(t);
  const daemon = await TestDaemon.start(
    t,
    await diskWorkplace(t),
    [],
    ['env', `NODE_COMPILE_CACHE=${cache}`],
  );
  // Answered after it has begun to serve.
  await daemon.ask('status');
  const kept = readdirSync(cache, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  await daemon.stop('SIGKILL');
  t.ok(kept.length > 100, `${kept.length} entries`);
});
