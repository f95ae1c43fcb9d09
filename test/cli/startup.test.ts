/** What the command line loads: a command must not load what it does not use, so that it starts at once. */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import t from 'tap';
import { diskWorkplace } from '../support/daemon.ts';

const ROOT = join(import.meta.dirname, '../..');
const MAIN = join(ROOT, 'src/main.ts');

/** Loaded first; prints on exit, on a separate line, what was loaded after it. */
const WATCH = `
import { registerHooks } from 'node:module';
import { writeSync } from 'node:fs';
const loaded = [];
registerHooks({ load(url, context, next) { loaded.push(url); return next(url, context); } });
process.on('exit', () => {
  const builtin = process.moduleLoadList.map((name) => 'builtin ' + name.split(' ').at(-1));
  writeSync(2, '\\nloaded ' + JSON.stringify([...loaded, ...builtin]));
});
`;

/** The modules that the command loads: paths in the project, and Node's own as `builtin NAME`. */
function modulesOf(...words: string[]): string[] {
  const watch = `data:text/javascript,${encodeURIComponent(WATCH)}`;
  const { stderr } = spawnSync(process.execPath, ['--import', watch, MAIN, ...words], {
    encoding: 'utf8',
    env: { ...process.env, XDG_RUNTIME_DIR: '/nonexistent' },
  });
  const line = stderr.split('\n').find((text) => text.startsWith('loaded '));
  if (!line) throw new Error(stderr);
  const urls = JSON.parse(line.slice('loaded '.length)) as string[];
  return urls.map((url) => url.replace(`file://${ROOT}/`, ''));
}

const isPackage = (name: string) => (path: string) => path.includes(`node_modules/${name}/`);
/** A part of Node, whoever loads it. */
const isBuiltin = (name: string) => (path: string) =>
  path.startsWith('builtin ') && path.split(/[ /]/).includes(name);
const isCommand = (path: string) =>
  /^src\/cli\/(?!answers|program|context|exit-codes|progress|setting-option|table)/.test(path);

t.test('--version loads nothing but the version', async (t) => {
  for (const word of ['--version', '-V'])
    t.same(
      modulesOf(word).filter((path) => !path.startsWith('builtin ')),
      ['src/main.ts', 'src/version.ts'],
    );
});

t.test('a command loads its own file and what it uses', async (t) => {
  const { store, key, dir } = await diskWorkplace(t);
  const commands = {
    images: [['--store', store], []],
    tag: [['app:1', 'app:2', '--store', store], []],
    copy: [['app:1', store, join(dir, 'copy')], []],
    export: [['app:1', join(dir, 'disk'), '--store', store, '--key', key], []],
    gc: [
      ['status', '--store', store],
      ['gc-policy', 'gc-status'],
    ],
  } as const;
  for (const [command, [words, parts]] of Object.entries(commands)) {
    const loaded = modulesOf(command, ...words);
    t.ok(loaded.includes('src/store/roots/root-store.ts'), `${command} works`);
    const own = [command, ...parts].map((name) => `src/cli/${name}.ts`);
    t.same(loaded.filter(isCommand).sort(), own.sort(), command);
    for (const name of ['pino', 'prom-client', 'smol-toml', '@aws-sdk', '@smithy'])
      t.notOk(loaded.some(isPackage(name)), `${command}: ${name}`);
    for (const part of [
      'src/daemon/client.ts',
      'src/daemon/daemon.ts',
      'src/store/objects/remote.ts',
      'node:http',
    ])
      t.notOk(loaded.includes(part), `${command}: ${part}`);
  }
});

t.test('a command of the daemon loads nothing of stores and images', async (t) => {
  for (const words of [['drives'], ['attach', 'app:1'], ['stat', 'web'], ['detach', 'web']]) {
    const loaded = modulesOf(...words, '--run-dir', '/nonexistent');
    t.ok(loaded.includes('src/daemon/client.ts'), `${words[0]} works`);
    t.same(loaded.filter(isCommand), [`src/cli/${words[0]}.ts`]);
    const others = loaded.filter((path) =>
      /^(?:src\/(?:format|image|chunk|drive|export)\/|native\/)/.test(path),
    );
    t.same(others, [], words[0]!);
    t.notOk(loaded.some(isBuiltin('undici')), words[0]!);
  }
});

t.test('build, fsck and the daemon load no fetch, TLS or OpenTelemetry', async (t) => {
  const { store, key, dir } = await diskWorkplace(t);
  const none = join(dir, 'none');
  const commands = {
    build: ['oci:none', '--name', 'a', '--store', none, '--key', key],
    fsck: ['--store', store],
    // With a file in place of the run directory, it exits once everything is loaded.
    serve: ['--store', store, '--key', key, '--cache', none, '--run-dir', key],
  };
  for (const [command, words] of Object.entries(commands)) {
    const loaded = modulesOf(command, ...words);
    const used = {
      build: 'src/image/build.ts',
      fsck: 'src/store/fsck/fsck.ts',
      serve: 'src/daemon/daemon.ts',
    };
    t.ok(loaded.includes(used[command as keyof typeof used]), `${command} works`);
    for (const name of ['@opentelemetry', '@aws-sdk', '@smithy'])
      t.notOk(loaded.some(isPackage(name)), `${command}: ${name}`);
    for (const name of ['undici', 'tls', 'https'])
      t.notOk(loaded.some(isBuiltin(name)), `${command}: ${name}`);
  }
});
