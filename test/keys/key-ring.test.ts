/** The keys of a host, from files and from KMS: cached within limits, and refused with helpful errors. */
import { spawnSync } from 'node:child_process';
import { chmodSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { inspect } from 'node:util';
import t, { type Test } from 'tap';
import { TenantKey } from '../../src/format/keys.ts';
import { encodeWrappedKey, type WrappedKey } from '../../src/format/wrapped-key.ts';
import { newKeyFile } from '../../src/keys/key-file.ts';
import { KeyRing, type KeyRingOptions } from '../../src/keys/key-ring.ts';
import { AwsKms } from '../../src/keys/kms.ts';
import { newWrappedKey } from '../../src/keys/wrapped-keys.ts';
import { ALIAS, KEY_A, KEY_B, KEY_C, KmsStandIn } from '../support/kms-stand-in.ts';
import { MemoryStore } from '../support/memory-store.ts';

const SPEC_A = `awskms:${KEY_A}`;

async function start(t: Test) {
  const [kms, store, maker] = [await KmsStandIn.start(t), new MemoryStore(), new AwsKms()];
  t.teardown(() => maker.close());
  let made = 0;
  return {
    kms,
    store,
    /** Makes a wrapped key that is newer than the ones before. */
    async make(arn = KEY_A, options = {}): Promise<WrappedKey> {
      if (made++ > 0) await sleep(3);
      return newWrappedKey(store, maker, arn, options);
    },
    async ring(specs: string[], options: KeyRingOptions = {}): Promise<KeyRing> {
      const ring = await KeyRing.open(specs, { wrappedKeys: store, ...options });
      t.teardown(() => ring.close());
      return ring;
    },
  };
}

t.test('a key of KMS is created, found and decrypted, and its object holds no secret', async (t) => {
  const { kms, store, make, ring } = await start(t);
  const wrapped = await make(KEY_A, { domain: 'team-a' });
  t.match(wrapped, { domain: 'team-a', keyArn: KEY_A, aliasArn: undefined });
  const keys = await ring([SPEC_A]);
  const key = (await keys.get(wrapped.id))!;
  t.equal(key.id, wrapped.id);
  t.equal(key.domain, 'team-a');
  t.equal(await keys.primary(), key);
  t.same(await keys.ids(), [wrapped.id]);
  t.equal(await keys.describe(), `key ${wrapped.id} (${SPEC_A})`);
  t.match(kms.calls[0]!.context, { 'lazydisk:key': wrapped.id, 'lazydisk:domain': 'team-a' });

  const { wrapKey, domainSecret } = JSON.parse(key.secretText()) as Record<string, string>;
  const shown = [
    store.keys.get(wrapped.id)!.toString('latin1'),
    inspect(keys, { depth: 9, showHidden: true, customInspect: false }),
    JSON.stringify(keys),
    JSON.stringify(wrapped),
    await keys.describe(),
  ].join('\n');
  for (const secret of [wrapKey!, domainSecret!]) {
    t.notOk(shown.includes(secret));
    t.notOk(shown.includes(Buffer.from(secret, 'base64').toString('latin1')));
  }
});

t.test('keys that share a domain share its salts, under different master keys', async (t) => {
  const { make, ring } = await start(t);
  const first = await make(KEY_A, { domain: 'shared' });
  const keys = await ring([SPEC_A, `awskms:${KEY_B}`]);
  const a = (await keys.get(first.id))!;
  const b = (await keys.get((await make(KEY_B, { sharing: a })).id))!;
  t.not(a.id, b.id);
  t.ok(a.sharesDomain(b));
  t.ok(a.salt(1).equals(b.salt(1)));
  const stranger = (await keys.get((await make(KEY_A, { domain: 'shared' })).id))!;
  t.notOk(a.sharesDomain(stranger), 'the same name does not make the same domain');
  t.notOk(a.salt(1).equals(stranger.salt(1)));
});

t.test('one ring holds keys of files and of KMS, in the order of the specs', async (t) => {
  const { kms, make, ring } = await start(t);
  const dir = t.testdir();
  const file = await newKeyFile(join(dir, 'key'));
  const old = await make();
  const newer = await make();
  const other = await make(KEY_C);
  const path = join(dir, 'key');
  const keys = await ring([path, SPEC_A]);
  t.same(await keys.ids(), [file.id, newer.id, old.id]);
  t.equal((await keys.primary()).id, file.id);
  t.equal((await keys.get(file.id))!.id, file.id);
  t.equal(await keys.describe(), `key ${file.id} (file:${path}), key ${newer.id}, key ${old.id} (${SPEC_A})`);
  t.equal(kms.count('Decrypt'), 0, 'KMS was not called so far');
  t.equal(await keys.get(other.id), undefined, 'a key of an ARN that is not in the specs');
  t.equal(await keys.get('0'.repeat(16)), undefined);
  t.equal(await keys.get('../../etc/passwd'), undefined);
  t.equal(kms.count('Decrypt'), 0, 'KMS was not called for unknown keys');
  t.equal((await (await ring([SPEC_A, `file:${path}`])).primary()).id, newer.id, 'the newest of the ARN');
  t.same(await (await ring([path])).ids(), [file.id]);
});

t.test('a key that is created later is found', async (t) => {
  const { store, make, ring } = await start(t);
  const keys = await ring([SPEC_A]);
  t.same(await keys.ids(), []);
  await t.rejects(keys.primary(), {
    code: 'KEY',
    message: `memory:test has no key of ${SPEC_A}; \`lazydisk key new ${SPEC_A} --store …\` creates one`,
  });
  t.equal(await keys.describe(), `no key (${SPEC_A})`);
  const first = await make();
  t.equal((await keys.primary()).id, first.id);
  const second = await make();
  t.equal((await keys.primary()).id, second.id);
  await keys.ids();
  t.equal(
    store.calls.filter((call) => call === `getKey ${first.id}`).length,
    2,
    'read once for the list, once to decrypt',
  );
});

t.test('a hundred concurrent callers of one key cause one Decrypt, and later ones none', async (t) => {
  const { kms, make, ring } = await start(t);
  const { id } = await make();
  const keys = await ring([SPEC_A]);
  const got = await Promise.all(Array.from({ length: 100 }, () => keys.get(id)));
  t.equal(new Set(got).size, 1);
  t.equal(got[0]!.id, id);
  t.equal(kms.count('Decrypt'), 1);
  for (let n = 0; n < 10; n++) await keys.get(id);
  t.equal(kms.count('Decrypt'), 1);
});

t.test('concurrent callers share a failure, and it is not cached', async (t) => {
  const { kms, make, ring } = await start(t);
  const { id } = await make();
  const keys = await ring([SPEC_A], { kms: { tries: 1 } });
  kms.fail('server error');
  const results = await Promise.allSettled(Array.from({ length: 20 }, () => keys.get(id)));
  for (const result of results) t.match(result, { status: 'rejected', reason: { code: 'UNAVAILABLE' } });
  t.equal(kms.count('Decrypt'), 1);
  t.equal((await keys.get(id))!.id, id);
});

t.test('an expired key is decrypted again, so a revoked or removed key is gone', async (t) => {
  const { kms, store, make, ring } = await start(t);
  const { id } = await make();
  const keys = await ring([SPEC_A], { ttlMs: 60 });
  await keys.get(id);
  await sleep(100);
  await keys.get(id);
  t.equal(kms.count('Decrypt'), 2);
  for (const state of ['denied', 'disabled', 'deleted', 'pending deletion'] as const) {
    kms.states.set(KEY_A, state);
    await sleep(100);
    await t.rejects(keys.get(id), { code: 'KEY', message: new RegExp(`key ${id}: KMS key ${KEY_A}`) }, state);
  }
  kms.states.delete(KEY_A);
  t.equal((await keys.get(id))!.id, id, 'access is restored');
  await sleep(100);
  store.keys.delete(id);
  t.equal(await keys.get(id), undefined, 'removed from the store');
});

t.test('using a key does not extend its time', async (t) => {
  const { kms, make, ring } = await start(t);
  const { id } = await make();
  const keys = await ring([SPEC_A], { ttlMs: 150 });
  const until = performance.now() + 500;
  while (performance.now() < until) {
    await keys.get(id);
    await sleep(10);
  }
  t.ok(kms.count('Decrypt') >= 3, `${kms.count('Decrypt')} times in half a second`);
});

t.test('at most keysMax keys are kept, and more concurrent callers are served', async (t) => {
  const { kms, make, ring } = await start(t);
  const ids: string[] = [];
  for (let n = 0; n < 5; n++) ids.push((await make()).id);
  const keys = await ring([SPEC_A], { keysMax: 2 });
  const got = await Promise.all(ids.map((id) => keys.get(id)));
  t.same(
    got.map((key) => key!.id),
    ids,
  );
  t.equal(kms.count('Decrypt'), 5);
  for (const id of ids) await keys.get(id);
  const before = kms.count('Decrypt');
  for (const id of ids.slice(-2)) await keys.get(id);
  t.equal(kms.count('Decrypt'), before, 'the last two are kept');
  await keys.get(ids[0]!);
  t.equal(kms.count('Decrypt'), before + 1, 'the others are not');
});

t.test('a closed ring has dropped its keys', async (t) => {
  const { kms, make, ring } = await start(t);
  const { id } = await make();
  const keys = await ring([SPEC_A]);
  await keys.get(id);
  keys.close();
  await keys.get(id);
  t.equal(kms.count('Decrypt'), 2);
});

t.test('a swapped, edited or corrupt object does not decrypt, and does not hide the others', async (t) => {
  const { store, make, ring } = await start(t);
  const a = await make(KEY_A, { domain: 'team-a' });
  const b = await make(KEY_A, { domain: 'team-b' });
  const keys = await ring([SPEC_A]);
  const cases: [string, WrappedKey, RegExp][] = [
    ["another key's blob", { ...a, blob: b.blob }, /InvalidCiphertext/],
    ['another domain', { ...a, domain: 'team-b' }, /InvalidCiphertext/],
    ['another date', { ...a, created: '2099-01-01T00:00:00.000Z' }, /InvalidCiphertext/],
    [
      'a corrupt blob',
      { ...a, blob: Buffer.concat([a.blob.subarray(1), Buffer.of(0)]) },
      /InvalidCiphertext/,
    ],
    ['a blob of another master', { ...a, blob: (await make(KEY_C)).blob }, /IncorrectKey/],
  ];
  for (const [name, edited, message] of cases) {
    store.keys.set(a.id, encodeWrappedKey(edited));
    await t.rejects(keys.get(a.id), { code: 'KEY', message }, name);
  }
  store.keys.set(a.id, Buffer.from('{}'));
  const corrupt = { code: 'CORRUPT', message: new RegExp(`wrapped key ${a.id}.*memory:test`) };
  await t.rejects(keys.get(a.id), corrupt);
  const fresh = await ring([SPEC_A]);
  t.same(await fresh.ids(), [b.id, a.id], 'an unreadable key is last');
  t.equal((await fresh.primary()).id, b.id);
});

t.test('a wrong plaintext from KMS is refused, and the error does not show it', async (t) => {
  const { kms, make, ring } = await start(t);
  const { id } = await make();
  const keys = await ring([SPEC_A]);
  kms.fail('wrong plaintext');
  const error = await keys.get(id).catch((error) => error);
  t.match(error, { code: 'KEY', message: `key ${id}: what KMS key ${KEY_A} decrypted is not that key` });
  t.equal(error.cause, undefined);
  kms.fail('other key');
  await t.rejects(keys.get(id), { code: 'KEY', message: /KMS used another key/ });
});

t.test('an alias decrypts its keys until it is moved; then the key needs its own ARN', async (t) => {
  const { kms, make, ring } = await start(t);
  const wrapped = await make(ALIAS);
  t.match(wrapped, { keyArn: KEY_A, aliasArn: ALIAS });
  const keys = await ring([`awskms:${ALIAS}`], { ttlMs: 60 });
  t.equal((await keys.primary()).id, wrapped.id);
  t.equal(kms.calls.at(-1)!.keyId, ALIAS);
  await sleep(100);
  kms.fail('other key');
  await t.rejects(keys.get(wrapped.id), { code: 'KEY', message: /is not that key/ });
  kms.aliases.set(ALIAS, KEY_C);
  await sleep(100);
  await t.rejects(keys.get(wrapped.id), {
    code: 'KEY',
    message: new RegExp(`IncorrectKeyException.*it was encrypted by ${KEY_A}`),
  });
  const newer = await make(ALIAS);
  const both = await ring([`awskms:${ALIAS}`, SPEC_A]);
  t.equal((await both.primary()).id, newer.id);
  t.equal((await both.get(wrapped.id))!.id, wrapped.id, 'with both specs, both keys decrypt');
});

t.test('invalid specs are refused with USAGE, invalid files with KEY', async (t) => {
  const open = (...specs: string[]) => KeyRing.open(specs);
  for (const spec of ['', 'file:', 'file://key', 'awskms:', 'awskms:alias/x', 'awskms:arn:aws:s3:::bucket'])
    await t.rejects(open(spec), { code: 'USAGE' }, spec);
  await t.rejects(open(), { code: 'USAGE', message: /no key/ });
  await t.rejects(open(SPEC_A), { code: 'USAGE', message: /are in a store/ });
  const dir = t.testdir();
  const path = join(dir, 'key');
  const key = await newKeyFile(path);
  for (const spec of [path, `file:${path}`, `file://${path}`])
    t.equal((await (await open(spec)).primary()).id, key.id, spec);
  await t.rejects(open(path, join(dir, 'none')), { code: 'KEY', message: /none does not exist/ });
  chmodSync(path, 0o644);
  await t.rejects(open(`file:${path}`), { code: 'KEY', message: /chmod 600/ });
});

t.test('a ring of given keys needs no store', async (t) => {
  const [a, b] = [TenantKey.generate(), TenantKey.generate()];
  const keys = KeyRing.of(a, b);
  t.same(await keys.ids(), [a.id, b.id]);
  t.equal(await keys.primary(), a);
  t.equal(await keys.get(b.id), b);
  keys.close();
});

t.test('a host with key files does not load the SDK', async (t) => {
  const path = join(t.testdir(), 'key');
  const key = await newKeyFile(path);
  const ring = new URL('../../src/keys/key-ring.ts', import.meta.url).href;
  const script = `
    import { registerHooks } from 'node:module';
    const loaded = [];
    registerHooks({ load(url, context, next) { loaded.push(url); return next(url, context); } });
    const { KeyRing } = await import(${JSON.stringify(ring)});
    const keys = await KeyRing.open([${JSON.stringify(path)}]);
    console.log((await keys.primary()).id, loaded.length > 5, loaded.filter((url) => /aws|smithy/.test(url)).length);`;
  const { stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', script], {
    encoding: 'utf8',
    cwd: new URL('../..', import.meta.url).pathname,
  });
  t.equal(stdout.trim(), `${key.id} true 0`, stderr);
});
