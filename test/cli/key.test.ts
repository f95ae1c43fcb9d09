/** A key's life on the command line: created, wrapped by KMS, used by build and serve, replaced, refused. */
import { randomBytes } from 'node:crypto';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { DriveInfo } from '../../src/daemon/api.ts';
import type { ImageInfo } from '../../src/store/image-info.ts';
import { buildWorkplace, lazydisk, lazydiskJson, TestDaemon, workplace } from '../support/daemon.ts';
import { ALIAS, KEY_A, KEY_B, KmsStandIn } from '../support/kms-stand-in.ts';
import { makeOciLayout } from '../support/oci.ts';

interface MadeKey {
  readonly id: string;
  readonly domain: string;
}

/** A KMS, and places for a store and a small container image. */
async function withKms(t: Test) {
  const kms = await KmsStandIn.start(t);
  const place = await workplace(t);
  await makeOciLayout(join(place.dir, 'oci'), { layers: [[{ name: 'data', body: randomBytes(300_000) }]] });
  const { store } = place;
  const build = (name: string, key: string) =>
    lazydiskJson([
      'build',
      `oci:${place.dir}/oci`,
      '--name',
      name,
      '--size',
      '32M',
      '--store',
      store,
      '--key',
      key,
    ]);
  const newKey = (spec: string, ...words: string[]) =>
    lazydiskJson<MadeKey>(['key', 'new', spec, '--store', store, ...words]);
  /** The exit code and stderr of `inspect` with that key. */
  const opens = async (name: string, key: string) => {
    const { code, stderr } = await lazydisk(['inspect', name, '--store', store, '--key', key]);
    return { code, stderr };
  };
  return { kms, place, store, build, newKey, opens };
}

t.test('a key that KMS wraps makes the store, builds images and serves drives', async (t) => {
  const { kms, place, store, build, newKey, opens } = await withKms(t);
  const spec = `awskms:${KEY_A}`;
  const made = await newKey(spec, '--domain', 'team-a');
  t.match(made, { arn: KEY_A, id: /^[0-9a-f]{16}$/, domain: 'team-a' });
  await build('app:1', spec);
  const [image] = await lazydiskJson<ImageInfo[]>(['images', '--store', store, '--key', spec]);
  t.match(image, { keys: [made.id], problem: null });

  const list = await lazydiskJson<Record<string, unknown>[]>(['key', 'list', '--store', store]);
  t.match(list, [{ id: made.id, domain: 'team-a', keyArn: KEY_A, aliasArn: null, problem: null }]);
  t.match(
    (await lazydisk(['key', 'list', '--store', store])).stdout,
    new RegExp(`^${made.id} +team-a `, 'm'),
  );

  // The host's first key is a file's, which does not open the image.
  const daemon = await TestDaemon.start(t, place, ['--key', spec]);
  const drive = await daemon.ask<DriveInfo>('attach', 'app:1');
  t.equal(drive.digest, image!.digest);
  t.match(await daemon.ask<ImageInfo[]>('images'), [{ name: 'app:1', keys: [made.id], problem: null }]);

  const refused = await opens('app:1', place.key);
  t.equal(refused.code, 5);
  t.match(
    refused.stderr,
    new RegExp(`is sealed for key ${made.id}, and this host has key [0-9a-f]{16} \\(file:`),
  );
  const stranger = await opens('app:1', `awskms:${KEY_B}`);
  t.equal(stranger.code, 5);
  t.match(
    stranger.stderr,
    new RegExp(`sealed for key ${made.id}, and this host has no key \\(awskms:${KEY_B}`),
  );
  kms.states.set(KEY_A, 'denied');
  const denied = await opens('app:1', spec);
  t.equal(denied.code, 5);
  t.match(denied.stderr, /^lazydisk: [^\n]+\n$/);
});

t.test('a daemon whose keys are a list in its file attaches with the second', async (t) => {
  const { place, build, newKey } = await withKms(t);
  const spec = `awskms:${ALIAS}`;
  t.match(await newKey(spec), { arn: KEY_A });
  await build('app:1', spec);
  const config = join(place.dir, 'lazydisk.toml');
  writeFileSync(config, `key = ["${place.key}", "${spec}"]\n`);
  const daemon = await TestDaemon.start(t, { ...place, key: undefined }, ['--config', config]);
  t.match(await daemon.ask<DriveInfo>('attach', 'app:1'), { image: 'app:1' });
});

t.test('a key is changed for another of its domain, and the old one opens nothing then', async (t) => {
  const { store, place, build, newKey, opens } = await withKms(t);
  const [old, next] = [place.key, `awskms:${KEY_B}`];
  await build('app:1', old);
  await build('app:2', old);
  const { id } = await newKey(next, '--sharing', old);
  const rewrap = (...words: string[]) =>
    lazydiskJson(['key', 'rewrap', '--store', store, '--from', old, '--to', next, ...words]);

  const planned = await rewrap('--all', '--dry-run');
  // Both names mean one image.
  t.match(planned, { images: 1, rewrapped: 1, skipped: 0, failures: [] });
  t.equal((await opens('app:1', next)).code, 5, 'a dry run seals nothing');
  t.same(await rewrap('--all'), planned);
  for (const key of [old, next]) t.equal((await opens('app:2', key)).code, 0, key);
  t.match(await rewrap('app:1', '--to', `${next}#${id}`), { rewrapped: 0, skipped: 1 });

  t.match(await rewrap('--all', '--remove-old', '--dry-run'), { skipped: 1, removed: 1 });
  t.equal((await opens('app:1', old)).code, 0);
  t.match(await rewrap('--all', '--remove-old'), { skipped: 1, removed: 1 });
  const refused = await opens('app:1', old);
  t.equal(refused.code, 5);
  t.match(refused.stderr, new RegExp(`is sealed for key ${id}, and this host has key`));
  t.equal((await opens('app:1', next)).code, 0);
  const human = await lazydisk(['key', 'rewrap', '--all', '--store', store, '--from', old, '--to', next]);
  t.match(human.stdout, /^already so +1$/m);

  const resealed = await rewrap('--all', '--from', next, '--reseal');
  t.match(resealed, { rewrapped: 1, sharingKeys: [], failures: [] });
  t.equal((await opens('app:1', next)).code, 0);

  // And back to a file: the domain stays the same.
  const back = join(place.dir, 'back#1');
  t.match(await newKey(back, '--sharing', next), { file: back });
  t.match(await rewrap('app:2', '--from', next, '--to', back), { rewrapped: 1 });
  t.equal((await opens('app:1', back)).code, 0);
});

t.test('what goes wrong with a rewrap has its code, and leaves images as they were', async (t) => {
  const { store, key, dir } = await buildWorkplace(t, 1);
  const [other, joined, third] = [join(dir, 'other'), join(dir, 'joined'), join(dir, 'third')];
  await lazydiskJson(['key', 'new', other]);
  for (const file of [joined, third]) await lazydiskJson(['key', 'new', file, '--sharing', key]);
  const cases: [number, string[]][] = [
    [2, ['--from', key, '--to', joined]],
    [2, ['app:1', '--all', '--from', key, '--to', joined]],
    [2, ['--all', '--from', key, '--to', other]],
    [2, ['--all', '--from', key, '--to', key]],
    [2, ['--all', '--from', key, '--to', 'awskms:x']],
    [5, ['--all', '--from', key, '--to', join(dir, 'none')]],
    [5, ['--all', '--from', `awskms:${KEY_A}`, '--to', joined]],
    [3, ['none:1', 'app:1', '--dry-run', '--from', key, '--to', joined]],
    [5, ['app:1', '--from', joined, '--to', third]],
  ];
  for (const [expected, words] of cases) {
    const { code, stderr } = await lazydisk(['key', 'rewrap', '--store', store, ...words]);
    t.equal(code, expected, `${words.join(' ')}: ${stderr}`);
    t.match(stderr, /^lazydisk: [^\n]+\n$/);
  }
  const [image] = await lazydiskJson<ImageInfo[]>(['images', '--store', store]);
  t.equal(image!.keys.length, 1);
});

t.test('no secret of a wrapped key is in the store', async (t) => {
  const { place, newKey } = await withKms(t);
  await newKey(`awskms:${KEY_A}`, '--sharing', place.key);
  const { domainSecret } = JSON.parse(readFileSync(place.key, 'utf8')) as { domainSecret: string };
  const files = readdirSync(place.storeDir, { recursive: true, withFileTypes: true }).filter((entry) =>
    entry.isFile(),
  );
  t.ok(files.some(({ parentPath }) => parentPath.endsWith('/keys')));
  for (const { parentPath, name } of files) {
    const bytes = readFileSync(join(parentPath, name));
    t.notOk(bytes.includes(domainSecret), name);
    t.notOk(bytes.includes(Buffer.from(domainSecret, 'base64')), `${name}, in binary`);
  }
});
