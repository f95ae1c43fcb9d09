/** Signatures of S3 requests: the examples that AWS publishes, and an independent verifier for all others. */
import { createHash } from 'node:crypto';
import fc from 'fast-check';
import t from 'tap';
import { encodePart, S3Signer } from '../../../src/store/objects/s3-signature.ts';
import { verifySignature } from '../../support/sigv4.ts';

/** The credentials, time and host of "Signature Calculations for the Authorization Header" in the S3 API reference. */
const credentials = {
  accessKeyId: 'AKIAIOSFODNN7EXAMPLE',
  secretAccessKey: 'wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY',
};
const nowMs = Date.parse('2013-05-24T00:00:00Z');
const url = { protocol: 'https:', hostname: 'examplebucket.s3.amazonaws.com', port: '' };
const sha256 = (bytes: string | Buffer) => createHash('sha256').update(bytes).digest('hex');
const NOTHING = sha256('');

t.test('the examples of the S3 API reference', async (t) => {
  const examples = [
    {
      request: {
        method: 'GET',
        url: { ...url, path: '/test.txt' },
        headers: { range: 'bytes=0-9' },
        sha256: NOTHING,
      },
      signature: 'f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41',
    },
    {
      request: {
        method: 'PUT',
        url: { ...url, path: '/test%24file.text' },
        headers: { date: 'Fri, 24 May 2013 00:00:00 GMT', 'x-amz-storage-class': 'REDUCED_REDUNDANCY' },
        sha256: sha256('Welcome to Amazon S3.'),
      },
      signature: '98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd',
    },
    {
      request: { method: 'GET', url: { ...url, path: '/?lifecycle' }, headers: {}, sha256: NOTHING },
      signature: 'fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543',
    },
    {
      request: {
        method: 'GET',
        url: { ...url, path: '/?max-keys=2&prefix=J' },
        headers: {},
        sha256: NOTHING,
      },
      signature: '34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7',
    },
  ];
  const signer = new S3Signer();
  for (const { request, signature } of examples) {
    const { authorization } = signer.sign(request, credentials, 'us-east-1', nowMs);
    t.match(authorization, `Signature=${signature}`, request.url.path);
  }
});

t.test('what is signed, a server finds good, whatever day, region and key come next', async () => {
  const signer = new S3Signer();
  const word = fc.stringMatching(/^[a-zA-Z0-9 /+=&%~!'()*_.ü-]{0,20}$/);
  const request = fc.record({
    method: fc.constantFrom('GET', 'PUT', 'DELETE'),
    path: fc.stringMatching(/^(\/[a-zA-Z0-9._-]{1,5}|%25){1,5}$/).map((text) => `/${text}`),
    query: fc.dictionary(fc.stringMatching(/^[a-z-]{1,8}$/), word, { maxKeys: 4 }),
    headers: fc.dictionary(fc.stringMatching(/^x-amz-[a-z]{1,8}$/), fc.stringMatching(/^[a-z ]{0,9}$/), {
      maxKeys: 3,
    }),
    body: fc.uint8Array({ maxLength: 100 }),
    port: fc.constantFrom('', '8080'),
    region: fc.constantFrom('us-east-1', 'eu-west-3'),
    secret: fc.stringMatching(/^[a-z]{1,20}$/),
    token: fc.constantFrom('', 'session/token=='),
    day: fc.integer({ min: 0, max: 3 }),
  });
  fc.assert(
    fc.property(request, (r) => {
      const pairs = Object.entries(r.query).map(([name, value]) => `${name}=${encodePart(value)}`);
      const path = pairs.length > 0 ? `${r.path}?${pairs.join('&')}` : r.path;
      const at = nowMs + r.day * 86_400_000;
      const body = Buffer.from(r.body);
      const target = { ...url, port: r.port, path };
      const signed = { method: r.method, url: target, headers: r.headers, sha256: sha256(body) };
      const key = {
        accessKeyId: 'ID',
        secretAccessKey: r.secret,
        ...(r.token && { sessionToken: r.token }),
      };
      const headers = signer.sign(signed, key, r.region, at);
      const seen = { method: r.method, url: path, headers, body };
      const who = verifySignature(seen, () => r.secret, at);
      return (
        who.region === r.region && who.service === 's3' && (headers['x-amz-security-token'] ?? '') === r.token
      );
    }),
    { numRuns: 500 },
  );
});
