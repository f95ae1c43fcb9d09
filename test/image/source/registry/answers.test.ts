/** Whatever a registry answers: an image, or one error of ours in one line, and nothing hangs. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import http, { type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import fc from 'fast-check';
import t from 'tap';
import { LazydiskError } from '../../../../src/errors.ts';
import { openSource } from '../../../../src/image/source/open-source.ts';
import { digestOf } from '../../../support/oci.ts';

const MANIFEST = 'application/vnd.oci.image.manifest.v1+json';
const INDEX = 'application/vnd.oci.image.index.v1+json';
const CONFIG = 'application/vnd.oci.image.config.v1+json';

// The first request, which finds out whether this is TLS, is answered by Node itself.
let answer: (response: ServerResponse, url: string) => void = () => undefined;
const server = http.createServer((request, response) => answer(response, request.url ?? ''));
server.listen(0, '127.0.0.1');
await once(server, 'listening');
t.teardown(() => {
  server.closeAllConnections();
  server.close();
});
const spec = `127.0.0.1:${(server.address() as AddressInfo).port}/app`;

/** Whether it was an image. */
async function expectNoSurprise(): Promise<boolean> {
  try {
    const source = await openSource(spec);
    await source.close();
    return true;
  } catch (error) {
    assert(error instanceof LazydiskError, `${error}`);
    assert.notEqual(error.code, 'INTERNAL');
    assert(error.message.startsWith(spec), error.message);
    return false;
  }
}

t.test('property: any status, headers and body', async (t) => {
  const text = fc.string({ unit: fc.constantFrom(...'abc":,={}[]0 \\/.-_') });
  const headers = fc.record(
    {
      'content-type': fc.oneof(text, fc.constantFrom(MANIFEST, INDEX, 'application/json; charset=utf-8')),
      'docker-content-digest': fc.oneof(text, fc.constant(`sha256:${'0'.repeat(64)}`)),
      'www-authenticate': fc.oneof(
        text,
        fc.constantFrom('Basic', 'Bearer realm="x"', `Bearer realm="http://${spec}"`),
      ),
      location: fc.oneof(text, fc.constantFrom('/', `http://${spec}`)),
      'content-range': fc.oneof(text, fc.constant('bytes 0-1/2')),
    },
    { requiredKeys: [] },
  );
  // Those that are asked again would only take their time.
  const status = fc.constantFrom(200, 206, 204, 301, 307, 400, 401, 403, 404, 416, 418);
  await fc.assert(
    fc.asyncProperty(status, headers, fc.oneof(fc.json(), fc.string()), async (status, headers, body) => {
      answer = (response) => void response.writeHead(status, headers).end(status === 204 ? undefined : body);
      await expectNoSurprise();
    }),
    { numRuns: 400 },
  );
  t.pass();
});

t.test('property: documents that are nearly right', async (t) => {
  let images = 0;
  const descriptor = (bytes: Buffer, mediaType: string) => ({
    mediaType,
    digest: digestOf(bytes),
    size: bytes.length,
  });
  const wrong = fc.constantFrom<unknown>(null, -1, 1e300, '', 'x', [], {}, true, ['x'], { digest: 1 });
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(fc.nat(40), wrong), { maxLength: 2 }),
      fc.boolean(),
      async (changes, isIndex) => {
        const spoil = <T extends object>(document: T): T => {
          let at = 0;
          return JSON.parse(JSON.stringify(document), (_key, value) => {
            const change = changes.find(([n]) => n === at);
            at++;
            return change ? change[1] : value;
          });
        };
        const config = Buffer.from(
          JSON.stringify(spoil({ os: 'linux', rootfs: { type: 'layers', diff_ids: [] } })),
        );
        const manifest = Buffer.from(
          JSON.stringify(spoil({ schemaVersion: 2, config: descriptor(config, CONFIG), layers: [] }) ?? null),
        );
        const index = Buffer.from(
          JSON.stringify(spoil({ schemaVersion: 2, manifests: [descriptor(manifest, MANIFEST)] }) ?? null),
        );
        const blobs = new Map([manifest, config].map((bytes) => [digestOf(bytes), bytes]));
        answer = (response, url) => {
          const bytes = url.endsWith('latest')
            ? isIndex
              ? index
              : manifest
            : blobs.get(url.split('/').at(-1)!);
          const type = bytes === index ? INDEX : MANIFEST;
          response.writeHead(bytes ? 200 : 404, { 'content-type': type }).end(bytes);
        };
        if (await expectNoSurprise()) images++;
      },
    ),
    { numRuns: 400 },
  );
  t.ok(images > 20 && images < 380, `${images} of 400 are images`);
});
