/** A tenant's key never shows its secrets, and wrong or corrupt keys are refused. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { format, inspect } from 'node:util';
import fc from 'fast-check';
import t from 'tap';
import { KEY_ID, TenantKey, WRAPPED_KEY_BYTES } from '../../src/format/keys.ts';

t.test('parse returns the key that secretText wrote', (t) => {
  const key = TenantKey.generate({ domain: 'team-a' });
  const again = TenantKey.parse(key.secretText());
  t.equal(again.id, key.id);
  t.equal(again.domain, 'team-a');
  t.ok(again.salt(1).equals(key.salt(1)));
  const dataKey = randomBytes(32);
  t.ok(again.unwrap(key.wrap(dataKey, Buffer.from('x')), Buffer.from('x')).equals(dataKey));
  t.match(key.id, KEY_ID);
  t.end();
});

t.test('no way of printing a key shows a secret', (t) => {
  const key = TenantKey.generate();
  const { wrapKey, domainSecret } = JSON.parse(key.secretText()) as Record<string, string>;
  const shown = [
    inspect(key, { depth: 9, showHidden: true }),
    format('%s %o %j', key, key, key),
    JSON.stringify({ key }),
    String(key),
    inspect({ nested: [key] }, { depth: 9, customInspect: false, showHidden: true }),
    Object.keys(key).join(),
  ].join('\n');
  for (const secret of [wrapKey!, domainSecret!]) {
    t.notMatch(shown, secret);
    t.notMatch(shown, Buffer.from(secret, 'base64').toString('hex'));
    t.notMatch(shown, Buffer.from(secret, 'base64').toString('hex').replace(/../g, '$& ').trim());
  }
  t.match(shown, key.id);
  t.end();
});

t.test('salts differ by epoch, domain name and secret', (t) => {
  const a = TenantKey.generate({ domain: 'a' });
  const sharing = TenantKey.generate({ sharing: a });
  t.ok(sharing.salt(1).equals(a.salt(1)), 'a key that joins a domain has the salt of the domain');
  t.not(sharing.id, a.id);
  const renamed = JSON.parse(a.secretText()) as Record<string, unknown>;
  renamed.domain = 'b';
  const salts = [
    a.salt(1),
    a.salt(2),
    a.salt(256),
    TenantKey.generate({ domain: 'a' }).salt(1),
    TenantKey.parse(JSON.stringify(renamed)).salt(1),
  ].map((salt) => salt.toString('hex'));
  t.equal(new Set(salts).size, salts.length);
  t.end();
});

t.test('a wrapped data key opens only unchanged, with its key and its binding', (t) => {
  const key = TenantKey.generate();
  const bound = randomBytes(32);
  const dataKey = randomBytes(32);
  const wrapped = key.wrap(dataKey, bound);
  t.equal(wrapped.length, WRAPPED_KEY_BYTES);
  t.notOk(key.wrap(dataKey, bound).equals(wrapped), 'never the same nonce');
  for (let bit = 0; bit < wrapped.length * 8; bit++) {
    const flipped = Buffer.from(wrapped);
    flipped[bit >> 3]! ^= 1 << (bit & 7);
    assert.throws(() => key.unwrap(flipped, bound), { code: 'KEY' });
  }
  t.throws(() => key.unwrap(wrapped, randomBytes(32)), { code: 'KEY' });
  t.throws(() => TenantKey.generate().unwrap(wrapped, bound), { code: 'KEY' });
  t.end();
});

t.test('text that is not a key is refused with KEY, and is not quoted', (t) => {
  const good = JSON.parse(TenantKey.generate().secretText()) as Record<string, unknown>;
  const other = JSON.parse(TenantKey.generate().secretText()) as Record<string, unknown>;
  const bad: Record<string, string> = {
    empty: '',
    'not JSON': 'super-secret-text',
    null: 'null',
    list: '[]',
    number: '7',
    'another kind': JSON.stringify({ ...good, kind: 'ssh' }),
    'a later version': JSON.stringify({ ...good, version: 2 }),
    'no domain': JSON.stringify({ ...good, domain: undefined }),
    'bad domain': JSON.stringify({ ...good, domain: '../x' }),
    'short key': JSON.stringify({ ...good, wrapKey: 'c3VwZXItc2VjcmV0LXRleHQ=' }),
    'loose base64': JSON.stringify({ ...good, wrapKey: ` ${String(good.wrapKey)}` }),
    'no secret': JSON.stringify({ ...good, domainSecret: 7 }),
    'key of another id': JSON.stringify({ ...good, wrapKey: other.wrapKey }),
  };
  for (const [name, text] of Object.entries(bad)) {
    try {
      TenantKey.parse(text);
      t.fail(name);
    } catch (error) {
      t.match(error, { code: 'KEY' }, name);
      t.notMatch(
        inspect(error),
        /super-secret-text|c3VwZXItc2VjcmV0/,
        `${name}: the error shows nothing of it`,
      );
    }
  }
  fc.assert(
    fc.property(fc.oneof(fc.string(), fc.json()), (text) => {
      assert.throws(() => TenantKey.parse(text), { code: 'KEY' });
    }),
  );
  t.end();
});

t.test('an invalid domain name is refused', (t) => {
  for (const domain of ['', 'a b', '-x', 'x'.repeat(64), 'ä', 'a\0'])
    t.throws(() => TenantKey.generate({ domain }), { code: 'USAGE' });
  t.equal(TenantKey.generate({ domain: 'x'.repeat(63) }).domain.length, 63);
  t.end();
});
