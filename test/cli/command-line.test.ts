/** The command line as a process: help, exit codes, one-line errors, JSON; everything that needs no daemon. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import type { ImageDetail, ImageInfo } from '../../src/store/image-info.ts';
import { buildWorkplace, lazydisk, lazydiskJson, tempDir } from '../support/daemon.ts';
import { rootDir } from '../support/dir-store.ts';

const MAIN = new URL('../../src/main.ts', import.meta.url).pathname;
const COMMANDS = [
  'build',
  'images',
  'inspect',
  'export',
  'copy',
  'tag',
  'rm',
  'gc',
  'serve',
  'attach',
  'detach',
  'drives',
  'stat',
  'fsck',
  'boot',
];

t.test('every command has help, and the help lists commands and exit codes', async (t) => {
  const { code, stdout, stderr } = await lazydisk(['--help']);
  t.equal(code, 0);
  t.equal(stderr, '');
  for (const command of COMMANDS) t.match(stdout, new RegExp(`^  ${command} `, 'm'));
  t.match(stdout, /^ +5 {2}KEY /m);
  const below = {
    key: ['new', 'list', 'rewrap'],
    gc: ['status', 'run', 'sweep', 'purge', 'rotate', 'policy'],
  };
  const words = [
    ...COMMANDS.filter((command) => command !== 'gc').map((command) => [command]),
    ...Object.entries(below).flatMap(([command, names]) => names.map((name) => [command, name])),
  ];
  const helps = await Promise.all(words.map((command) => lazydisk([...command, '--help'])));
  for (const [at, help] of helps.entries()) {
    const command = words[at]!.join(' ');
    t.equal(help.code, 0, command);
    t.match(help.stdout, new RegExp(`^Usage: lazydisk ${command} `));
    t.match(help.stdout, command === 'serve' ? /SIGTERM/ : /JSON|json/, command);
  }
  t.match((await lazydisk(['--version'])).stdout, /^\d+\.\d+\.\d+\n$/);
});

t.test('wrong words are exit code 2 and one line', async (t) => {
  const cases = [
    ['frobnicate'],
    ['images', '--colour'],
    ['build'],
    ['build', 'oci:x'],
    ['attach'],
    ['detach', 'a', 'b'],
    ['export', 'x', 'y'],
    ['images', '--store', '/nonexistent/s', '--key'],
    ['images', '--history'],
    ['images', '--store', 's3://'],
    ['images', '--store', 's3://bucket?endpoint=http://127.0.0.1:1&colour=red'],
    ['copy', 'a', '/nonexistent/s'],
    ['tag', 'a', 'b'],
    ['tag', 'a', 'b', '--store', '/nonexistent/s', '--expected', 'c'],
    ['rm', '--store', '/nonexistent/s'],
    ['rm', '../x', '--store', '/nonexistent/s'],
    ['rm', 'x', '--expected', 'none', '--store', '/nonexistent/s'],
    ['gc', 'frobnicate'],
    ['gc', 'policy', '--grace', '7', '--store', '/nonexistent/s'],
    ['gc', 'sweep'],
    [
      'build',
      'floppy:x',
      '--name',
      'a',
      '--store',
      '/nonexistent/s',
      '--key',
      '/nonexistent/k',
      '--size',
      'huge',
    ],
  ];
  const results = await Promise.all(cases.map((words) => lazydisk(words)));
  for (const [at, { code, stderr, stdout }] of results.entries()) {
    t.equal(code, 2, cases[at]!.join(' '));
    t.match(stderr, /^lazydisk: [^\n]+\n$/, stderr);
    t.equal(stdout, '');
  }
});

t.test('a key is made once, private, and never shown', async (t) => {
  const key = join(tempDir(t), 'key');
  const made = await lazydisk(['key', 'new', key]);
  t.equal(made.code, 0);
  t.equal(statSync(key).mode & 0o777, 0o600);
  const { wrapKey, domainSecret } = JSON.parse(readFileSync(key, 'utf8')) as Record<string, string>;
  for (const secret of [wrapKey!, domainSecret!]) t.notOk(made.stdout.includes(secret));
  const again = await lazydisk(['key', 'new', key]);
  t.equal(again.code, 4);
  t.match(again.stderr, /^lazydisk: .*exists.*\n$/);
});

t.test('a key joins the domain of another, and is named as a path or with file:', async (t) => {
  const dir = tempDir(t);
  const [first, second] = [join(dir, 'first'), join(dir, 'second')];
  await lazydiskJson(['key', 'new', `file:${first}`, '--domain', 'team-a']);
  const made = await lazydiskJson<{ id: string }>(['key', 'new', second, '--sharing', `file:${first}`]);
  t.match(made, { file: second, domain: 'team-a' });
  const secrets = (path: string) => JSON.parse(readFileSync(path, 'utf8')) as Record<string, string>;
  t.equal(secrets(second).domainSecret, secrets(first).domainSecret);
  t.not(secrets(second).wrapKey, secrets(first).wrapKey);
  const third = join(dir, 'third');
  const arn = 'awskms:arn:aws:kms:eu-central-1:111122223333:key/1';
  const cases: [number, string[]][] = [
    [2, [third, '--sharing', first, '--domain', 'b']],
    [2, [third, '--domain', 'a b']],
    [2, ['file:']],
    [2, [arn]],
    [2, [third, '--sharing', arn]],
    [5, [third, '--sharing', join(dir, 'none')]],
    [4, [first, '--sharing', second]],
  ];
  for (const [expected, words] of cases) {
    const { code, stderr } = await lazydisk(['key', 'new', ...words]);
    t.equal(code, expected, stderr);
    t.match(stderr, /^lazydisk: [^\n]+\n$/);
  }
  t.notOk(existsSync(third));
});

t.test('a store is built, listed, inspected and exported without a daemon', async (t) => {
  const { dir, store, key } = await buildWorkplace(t, 3);
  const [image] = await lazydiskJson<ImageInfo[]>(['images', '--store', store, '--key', key]);
  t.match(image, { name: 'app:1', digest: /^sha256:/, sizeBytes: 256 * 1024 ** 2, problem: null });
  t.ok(image!.storedBytes! > 3 * 700_000);
  t.equal(image!.keys.length, 1);
  t.same(await lazydiskJson(['images', '--store', store]), [image], 'sizes need no key');

  const env = { LAZYDISK_STORE: store, LAZYDISK_KEY: key };
  const detail = await lazydiskJson<ImageDetail>(['inspect', 'app:1'], env);
  t.same(await lazydiskJson(['inspect', 'app:1'], { ...env, LAZYDISK_KEY: `file:${key}` }), detail);
  t.equal(detail.digest, image!.digest);
  t.match(detail.content?.config, {
    entrypoint: ['/bin/app'],
    env: ['TOKEN=hunter2'],
    labels: { team: 'disks' },
  });
  const human = await lazydisk(['inspect', 'app:1'], env);
  t.match(human.stdout, /^entrypoint +\["\/bin\/app"\]$/m);

  const sealed = await lazydisk(['inspect', 'app:1', '--store', store]);
  t.equal(sealed.code, 0);
  t.notMatch(sealed.stdout, /hunter2/);
  t.match(await lazydiskJson(['inspect', 'app:1', '--store', store]), { content: null });

  const file = join(dir, 'disk');
  t.match(await lazydiskJson(['export', 'app:1', file], env), { diskBytes: 256 * 1024 ** 2, file });
  t.equal(statSync(file).size, 256 * 1024 ** 2);
  t.ok(statSync(file).blocks * 512 < 16 * 1024 ** 2, 'sparse');
  t.match((await lazydisk(['images'], env)).stdout, /^NAME +DIGEST +DISK +CHUNKS +STORED +UNIQUE +AGE +KEYS/);
});

t.test('each failure has its code', async (t) => {
  const { dir, store, key } = await buildWorkplace(t, 1);
  const other = join(dir, 'other');
  await lazydiskJson(['key', 'new', other]);
  const open = join(dir, 'open');
  writeFileSync(open, readFileSync(key));
  chmodSync(open, 0o644);
  const run = join(dir, 'nobody');
  const cases: [number, string[]][] = [
    [3, ['inspect', 'none', '--store', store, '--key', key]],
    [3, ['images', '--store', `${dir}/nothing`, '--key', key]],
    [3, ['build', `oci:${dir}/nothing`, '--name', 'a', '--store', store, '--key', key]],
    [5, ['inspect', 'app:1', '--store', store, '--key', other]],
    [5, ['inspect', 'app:1', '--store', store, '--key', open]],
    [5, ['export', 'app:1', '/dev/null', '--store', store, '--key', `${dir}/nokey`]],
    [2, ['export', 'app:1', '/dev/null', '--store', store]],
    [7, ['images', '--store', 'ftp://host/x']],
    [10, ['images', '--store', 's3://bucket/x?endpoint=http://127.0.0.1:1&region=none']],
    [3, ['copy', 'app:1', `${dir}/nothing`, `${dir}/new`]],
    [3, ['copy', 'none', store, `${dir}/new`]],
    [3, ['tag', 'none', 'a', '--store', store]],
    [3, ['tag', `sha256:${'0'.repeat(64)}`, 'a', '--store', store]],
    [12, ['tag', 'app:1', 'app:1', '--store', store, '--expected', 'none']],
    [3, ['rm', 'none', '--store', store]],
    [12, ['rm', 'app:1', '--store', store, '--expected', `sha256:${'0'.repeat(64)}`]],
    [3, ['gc', 'sweep', '--store', `${dir}/nothing`]],
    [2, ['gc', 'policy', '--store', store, '--grace', '1s']],
    [8, ['build', `oci:${dir}/oci`, '--name', 'a', '--store', store, '--key', key, '--size', '512K']],
    [10, ['drives', '--run-dir', run]],
    [10, ['attach', 'app:1', '--run-dir', run]],
    [10, ['detach', 'x', '--run-dir', run]],
    [10, ['stat', 'x', '--run-dir', run]],
    [10, ['boot', 'app:1', '--run-dir', run]],
    [10, ['images', '--run-dir', run]],
  ];
  const results = await Promise.all(cases.map(([, words]) => lazydisk(words)));
  for (const [at, { code, stderr }] of results.entries()) {
    const [expected, words] = cases[at]!;
    t.equal(code, expected, `${words.slice(0, 2).join(' ')}: ${stderr}`);
    t.match(stderr, /^lazydisk: [^\n]+\n$/);
    t.notMatch(stderr, /\.ts:\d/, 'no stack');
  }
  const debug = await lazydisk(['drives', '--run-dir', run], { LAZYDISK_DEBUG: '1' });
  t.match(debug.stderr, /client\.ts:\d/, 'but with LAZYDISK_DEBUG there is one');
});

t.test('a broken pipe is no error', async (t) => {
  const { store, key } = await buildWorkplace(t, 1);
  const words = ['export', 'app:1', '-', '--store', store, '--key', key];
  const child = spawn(process.execPath, [MAIN, ...words], { stdio: ['ignore', 'pipe', 'pipe'] });
  let stderr = '';
  child.stderr.on('data', (text) => (stderr += text));
  child.stdout.once('data', () => child.stdout.destroy());
  const [code] = await once(child, 'close');
  t.equal(stderr, '');
  t.equal(code, 0);
});

t.test('an export to standard output is the disk and nothing else', async (t) => {
  const { dir, store, key } = await buildWorkplace(t, 1);
  const env = { LAZYDISK_STORE: store, LAZYDISK_KEY: key };
  await lazydiskJson(['export', 'app:1', join(dir, 'disk')], env);
  const child = spawn(
    'sh',
    ['-c', `"$0" "$1" export app:1 - | cmp - "$2"`, process.execPath, MAIN, join(dir, 'disk')],
    {
      env: { ...process.env, ...env },
      stdio: 'ignore',
    },
  );
  t.equal((await once(child, 'close'))[0], 0);
});

t.test('an interrupted build says so, and leaves no name', async (t) => {
  const { dir, store, key } = await buildWorkplace(t, 40, 1_200_000);
  const words = ['build', `oci:${dir}/oci`, '--name', 'late', '--store', `${store}2`, '--key', key];
  const child = spawn(process.execPath, [MAIN, ...words], { stdio: ['ignore', 'pipe', 'pipe'] });
  let stderr = '';
  child.stderr.on('data', (text) => (stderr += text));
  // Once a few chunks are stored, the build is in progress.
  const chunks = join(rootDir(join(dir, 'store2')), 'chunks');
  const poll = setInterval(() => {
    if (existsSync(chunks) && readdirSync(chunks, { recursive: true }).length > 8) {
      clearInterval(poll);
      child.kill('SIGINT');
    }
  }, 5);
  const [code] = await once(child, 'close');
  clearInterval(poll);
  t.equal(code, 13);
  t.equal(stderr, 'lazydisk: stopped by SIGINT\n');
  t.same(await lazydiskJson(['images', '--store', `${store}2`]), []);
});

t.test(
  'what an image may cost a build is set by two flags, and the refusal names the one to raise',
  async (t) => {
    const { dir, store, key } = await buildWorkplace(t, 1);
    const build = (...flags: string[]) =>
      lazydisk(['build', `oci:${dir}/oci`, '--name', 'b', '--store', `${store}2`, '--key', key, ...flags]);
    t.match(await build('--max-input', '1K'), { code: 7, stderr: /layer 1 of 1 .*path .*--max-input/ });
    t.match(await build('--max-entries', '0'), { code: 2, stderr: /count "0"/ });
    t.match(await build('--max-entries', '8000001'), { code: 2, stderr: /the maximum is 8000000/ });
    t.match(await build('--max-input', '2G', '--max-entries', '1000'), { code: 0 });
  },
);
