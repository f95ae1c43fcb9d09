/** The KMS client against a stand-in that verifies signatures: its requests, and the error for each kind of failure. */
import { createHash } from 'node:crypto';
import { inspect } from 'node:util';
import t, { type Test } from 'tap';
import { LazydiskError } from '../../src/errors.ts';
import { AwsKms } from '../../src/keys/kms.ts';
import {
  ALIAS,
  type Fault,
  KEY_A,
  KEY_B,
  KEY_C,
  KmsStandIn,
  SECRET_KEY,
  SESSION_TOKEN,
} from '../support/kms-stand-in.ts';
import { type SignedRequest, verifySignature } from '../support/sigv4.ts';

const SECRET = 'the-plaintext-that-nobody-may-see';
const CONTEXT = { 'lazydisk:key': '0123456789abcdef', 'lazydisk:domain': 'team-a' };

async function start(t: Test, options = {}) {
  const standIn = await KmsStandIn.start(t);
  const kms = new AwsKms({ requestMs: 2000, ...options });
  t.teardown(() => kms.close());
  return { standIn, kms };
}

/** Returns the error that `work` fails with, after checking that no way of printing it shows a secret. */
async function failureOf(t: Test, work: Promise<unknown>): Promise<LazydiskError> {
  const error = await work.then(
    () => t.fail('it did not fail'),
    (error) => error,
  );
  if (!(error instanceof LazydiskError)) throw error;
  const shown = [inspect(error, { depth: 20, showHidden: true }), JSON.stringify(error), error.stack].join();
  const base64 = Buffer.from(SECRET).toString('base64');
  const bytes = inspect(Buffer.from(SECRET)).slice('<Buffer '.length, -1);
  for (const secret of [SECRET, base64, bytes, SECRET_KEY, SESSION_TOKEN, 'Signature='])
    t.notOk(shown.includes(secret), 'no secret');
  return error;
}

t.test('decrypt returns what was encrypted, by key and by alias, with valid signatures', async (t) => {
  const { standIn, kms } = await start(t);
  for (const [arn, keyArn] of [
    [KEY_A, KEY_A],
    [KEY_B, KEY_B],
    [ALIAS, KEY_A],
  ] as const) {
    const encrypted = await kms.encrypt(arn, Buffer.from(SECRET), CONTEXT);
    t.equal(encrypted.keyArn, keyArn);
    t.equal(encrypted.blob.indexOf(SECRET), -1);
    const decrypted = await kms.decrypt(arn, encrypted.blob, CONTEXT);
    t.equal(decrypted.plaintext.toString(), SECRET);
    t.equal(decrypted.keyArn, keyArn);
  }
  t.same(standIn.unsigned, []);
  t.match(standIn.calls[1], { operation: 'Decrypt', keyId: KEY_A, context: CONTEXT });
});

t.test('a blob decrypts only unchanged, with its key and its context', async (t) => {
  const { kms } = await start(t);
  const { blob } = await kms.encrypt(KEY_A, Buffer.from(SECRET), CONTEXT);
  const other = { ...CONTEXT, 'lazydisk:domain': 'team-b' };
  const altered = Buffer.from(blob);
  altered[altered.length - 1]! ^= 1;
  const cases: [string, Promise<unknown>, RegExp][] = [
    ['another context', kms.decrypt(KEY_A, blob, other), /InvalidCiphertext/],
    ['no context', kms.decrypt(KEY_A, blob, {}), /InvalidCiphertext/],
    ['a corrupt blob', kms.decrypt(KEY_A, altered, CONTEXT), /InvalidCiphertext/],
    ['a short blob', kms.decrypt(KEY_A, blob.subarray(0, 9), CONTEXT), /InvalidCiphertext/],
    ['another key', kms.decrypt(KEY_C, blob, CONTEXT), /IncorrectKey/],
  ];
  for (const [name, work, message] of cases) {
    const error = await failureOf(t, work);
    t.match(error, { code: 'KEY', message }, name);
    t.match(error.message, /arn:aws:kms:/);
  }
});

t.test('a refusal by KMS is KEY without a retry, and names the ARN', async (t) => {
  const { standIn, kms } = await start(t);
  const { blob } = await kms.encrypt(KEY_A, Buffer.from(SECRET), CONTEXT);
  const cases = [
    ['denied', 'AccessDeniedException'],
    ['disabled', 'DisabledException'],
    ['deleted', 'NotFoundException'],
    ['pending deletion', 'KMSInvalidStateException'],
  ] as const;
  for (const [state, name] of cases) {
    standIn.states.set(KEY_A, state);
    const before = standIn.calls.length;
    for (const work of [
      kms.decrypt(KEY_A, blob, CONTEXT),
      kms.encrypt(KEY_A, Buffer.from(SECRET), CONTEXT),
    ]) {
      const error = await failureOf(t, work);
      t.equal(error.code, 'KEY', state);
      t.ok(error.message.includes(KEY_A) && error.message.includes(name), error.message);
    }
    t.equal(standIn.calls.length, before + 2, 'no retry');
  }
});

t.test('a transient failure of KMS is retried', async (t) => {
  const { standIn, kms } = await start(t, { requestMs: 500 });
  const { blob } = await kms.encrypt(KEY_A, Buffer.from(SECRET), CONTEXT);
  for (const fault of ['throttling', 'server error', 'key unavailable', 'reset', 'hang', 'half'] as Fault[]) {
    standIn.fail(fault);
    const { plaintext } = await kms.decrypt(KEY_A, blob, CONTEXT);
    t.equal(plaintext.toString(), SECRET, fault);
  }
});

t.test('a lasting failure of KMS is UNAVAILABLE, after bounded tries and time', async (t) => {
  const { standIn, kms } = await start(t, { requestMs: 200, tries: 2 });
  const { blob } = await kms.encrypt(KEY_A, Buffer.from(SECRET), CONTEXT);
  const faults = [
    'throttling',
    'server error',
    'reset',
    'hang',
    'half',
    'no plaintext',
    'not json',
  ] as Fault[];
  for (const fault of faults) {
    standIn.heal();
    standIn.fail(fault, 100);
    const [before, started] = [standIn.calls.length, performance.now()];
    const error = await failureOf(t, kms.decrypt(KEY_A, blob, CONTEXT));
    t.equal(error.code, 'UNAVAILABLE', `${fault}: ${error.message}`);
    t.ok(error.message.includes(KEY_A));
    t.ok(standIn.calls.length - before <= 2, `${standIn.calls.length - before} tries`);
    t.ok(performance.now() - started < 8000, `${fault}: ${performance.now() - started} ms`);
  }
  standIn.heal();
  t.equal((await kms.decrypt(KEY_A, blob, CONTEXT)).plaintext.toString(), SECRET, 'KMS has recovered');
});

t.test('the error of a failed encryption does not show the plaintext', async (t) => {
  const { standIn, kms } = await start(t, { requestMs: 200, tries: 1 });
  for (const fault of ['throttling', 'server error', 'reset', 'hang', 'half', 'not json'] as Fault[]) {
    standIn.fail(fault);
    const error = await failureOf(t, kms.encrypt(KEY_A, Buffer.from(SECRET), CONTEXT));
    t.equal(error.code, 'UNAVAILABLE', `${fault}: ${error.message}`);
  }
});

t.test('a response from another KMS key is refused', async (t) => {
  const { standIn, kms } = await start(t);
  standIn.fail('other key');
  t.match(await failureOf(t, kms.encrypt(KEY_A, Buffer.from(SECRET), CONTEXT)), {
    code: 'KEY',
    message: /KMS used another key/,
  });
});

t.test('bad and missing credentials are KEY, and the error says so', async (t) => {
  const { standIn } = await start(t);
  const fresh = () => {
    const kms = new AwsKms();
    t.teardown(() => kms.close());
    return kms.encrypt(KEY_A, Buffer.from(SECRET), CONTEXT);
  };
  process.env.AWS_SECRET_ACCESS_KEY = 'not-the-secret';
  t.match(await failureOf(t, fresh()), { code: 'KEY', message: /InvalidSignatureException/ });
  t.match(standIn.unsigned, [/signature we calculated does not match/]);
  process.env.AWS_ACCESS_KEY_ID = 'AKIDNOBODY';
  t.match(await failureOf(t, fresh()), { code: 'KEY', message: /UnrecognizedClientException/ });
  t.equal(standIn.calls.length, 0);
  delete process.env.AWS_ACCESS_KEY_ID;
  t.match(await failureOf(t, fresh()), { code: 'KEY', message: /no AWS credentials/ });
});

t.test('an endpoint that refuses connections is UNAVAILABLE', async (t) => {
  await start(t);
  process.env.AWS_ENDPOINT_URL_KMS = 'http://127.0.0.1:9';
  const kms = new AwsKms({ requestMs: 300, tries: 2 });
  t.teardown(() => kms.close());
  t.match(await failureOf(t, kms.encrypt(KEY_A, Buffer.from(SECRET), CONTEXT)), { code: 'UNAVAILABLE' });
});

t.test('the signature check of the stand-in detects every change', (t) => {
  // AWS's own example ("get-vanilla" of its Signature Version 4 test suite).
  const request: SignedRequest = {
    method: 'GET',
    url: '/',
    headers: {
      host: 'example.amazonaws.com',
      'x-amz-date': '20150830T123600Z',
      authorization:
        'AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date, Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31',
    },
    body: Buffer.alloc(0),
  };
  const verify = (changes: object, now = Date.parse('2015-08-30T12:36:00Z')) =>
    verifySignature({ ...request, ...changes }, () => 'wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY', now);
  t.same(verify({}), { accessKeyId: 'AKIDEXAMPLE', region: 'us-east-1', service: 'service' });
  const altered = (name: string, value: string) => ({ headers: { ...request.headers, [name]: value } });
  const hash = createHash('sha256').update('x').digest('hex');
  const cases: [string, object, RegExp][] = [
    ['method', { method: 'POST' }, /does not match/],
    ['path', { url: '/x' }, /does not match/],
    ['query', { url: '/?a=b' }, /does not match/],
    ['body', { body: Buffer.from('x') }, /does not match/],
    ['host', altered('host', 'other.amazonaws.com'), /does not match/],
    ['time', altered('x-amz-date', '20150830T123601Z'), /does not match/],
    ['target', altered('x-amz-target', 'TrentService.Encrypt'), /x-amz-target is not signed/],
    ['hash', { ...altered('x-amz-content-sha256', hash) }, /not signed/],
    ['none', altered('authorization', ''), /no valid Authorization/],
  ];
  for (const [name, changes, message] of cases) t.throws(() => verify(changes), { message }, name);
  t.throws(() => verify({}, Date.parse('2015-08-30T12:42:00Z')), { message: /expired/ });
  t.end();
});
