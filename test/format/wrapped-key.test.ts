/** Wrapped keys survive encoding and decoding, and anything else is refused. */
import { randomBytes } from 'node:crypto';
import t from 'tap';
import { decodeWrappedKey, encodeWrappedKey, encryptionContext } from '../../src/format/wrapped-key.ts';

const sample = {
  id: '0123456789abcdef',
  domain: 'team-a',
  keyArn: 'arn:aws:kms:eu-central-1:111122223333:key/mrk-1234abcd12ab34cd56ef1234567890ab',
  blob: randomBytes(400),
  created: '2026-01-31T12:00:00.000Z',
};
const aliasArn = 'arn:aws-us-gov:kms:us-gov-west-1:111122223333:alias/a/b_c-d';

t.test('a wrapped key decodes to what was encoded, in exactly the documented form', (t) => {
  t.same(decodeWrappedKey(encodeWrappedKey(sample), sample.id), sample);
  const named = { ...sample, aliasArn };
  t.same(decodeWrappedKey(encodeWrappedKey(named), sample.id), named);
  const { id, domain, keyArn, blob, created } = sample;
  t.same(JSON.parse(encodeWrappedKey(named).toString()), {
    kind: 'lazydisk wrapped key',
    version: 1,
    id,
    domain,
    kms: 'aws',
    keyArn,
    aliasArn,
    blob: blob.toString('base64'),
    created,
  });
  t.end();
});

t.test('the encryption context binds the id, the domain and the time of creation', (t) => {
  t.same(encryptionContext(sample), {
    'lazydisk:key': '0123456789abcdef',
    'lazydisk:domain': 'team-a',
    'lazydisk:created': '2026-01-31T12:00:00.000Z',
  });
  t.end();
});

t.test('anything but a wrapped key is CORRUPT, and another version is UNSUPPORTED', (t) => {
  const altered = (changes: object) =>
    Buffer.from(JSON.stringify({ ...JSON.parse(encodeWrappedKey(sample).toString()), ...changes }));
  const corrupt: [string, Buffer][] = [
    ['nothing', Buffer.alloc(0)],
    ['noise', randomBytes(500)],
    ['null', Buffer.from('null')],
    ['a list', Buffer.from('[]')],
    ['half', encodeWrappedKey(sample).subarray(0, 200)],
    ['huge', Buffer.concat([encodeWrappedKey(sample), Buffer.alloc(20_000, ' ')])],
    ['another kind', altered({ kind: 'lazydisk key' })],
    ['another id', altered({ id: 'fedcba9876543210' })],
    ['a domain with a space', altered({ domain: 'a b' })],
    ['no domain', altered({ domain: undefined })],
    ['an alias for a key', altered({ keyArn: aliasArn })],
    ['a key for an alias', altered({ aliasArn: sample.keyArn })],
    ['an ARN of another service', altered({ keyArn: 'arn:aws:s3:::bucket' })],
    ['an ARN with a line break', altered({ keyArn: `${sample.keyArn}\n` })],
    ['no blob', altered({ blob: '' })],
    ['a blob that is not text', altered({ blob: 7 })],
    ['a blob that is not base64', altered({ blob: 'a*bc' })],
    ['a date without time', altered({ created: '2026-01-31' })],
  ];
  for (const [name, bytes] of corrupt)
    t.throws(
      () => decodeWrappedKey(bytes, sample.id),
      { code: 'CORRUPT', message: /0123456789abcdef/ },
      name,
    );
  for (const changes of [{ version: 2 }, { kms: 'gcp' }])
    t.throws(() => decodeWrappedKey(altered(changes), sample.id), { code: 'UNSUPPORTED' });
  t.end();
});
