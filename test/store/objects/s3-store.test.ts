/** Image stores in a bucket: the contract of all stores, on a real RGW and through retries. */
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import t from 'tap';
import { CHUNK_BYTES, type ChunkId } from '../../../src/format/chunk-id.ts';
import { TenantKey } from '../../../src/format/keys.ts';
import { buildImage } from '../../../src/image/build.ts';
import { openSource } from '../../../src/image/source/open-source.ts';
import { RetryObjects } from '../../../src/store/objects/retry-objects.ts';
import { S3Objects } from '../../../src/store/objects/s3-objects.ts';
import { parseS3Url } from '../../../src/store/objects/s3-url.ts';
import { openStore } from '../../../src/store/open.ts';
import { RootStore } from '../../../src/store/roots/root-store.ts';
import { HookedObjects } from '../../support/hooked-objects.ts';
import { makeOciLayout } from '../../support/oci.ts';
import { RGW_TOOLS, Rgw } from '../../support/rgw.ts';
import { skipWithout } from '../../support/tools.ts';
import { storeSuite } from '../store-suite.ts';

if (!skipWithout(t, ...RGW_TOOLS)) await all();

async function all(): Promise<void> {
  const rgw = await Rgw.start();
  t.teardown(() => rgw.close());
  rgw.useInThisProcess();
  await rgw.createBucket('stores');
  let stores = 0;

  t.test('bytes that are not what a chunk is named by are refused by the server', async (t) => {
    const store = await openStore(`s3://stores/lie?endpoint=${rgw.endpoint}`, { create: true });
    t.teardown(() => store.close());
    const writer = await store.writer();
    const id = 'ab'.repeat(32) as ChunkId;
    await t.rejects(writer.putChunk(id, Buffer.from('other bytes')), { message: /SHA256Mismatch/ });
    t.equal(await writer.hasChunk(id), false);
  });

  t.test('a build asks for no chunk by itself that one listing tells of', async (t) => {
    const dir = t.testdir();
    const body = randomBytes(20 * CHUNK_BYTES);
    await makeOciLayout(join(dir, 'oci'), { layers: [[{ name: 'data', body }]] });
    const source = await openSource(`oci:${join(dir, 'oci')}`);
    t.teardown(() => source.close());
    const asked = { head: 0, put: 0, list: 0 };
    const bucket = new S3Objects(parseS3Url(`s3://stores/listed?endpoint=${rgw.endpoint}`));
    const objects = new HookedObjects(bucket, (request, [key]) => {
      if (request in asked && key!.startsWith('roots/1/chunks/')) asked[request as keyof typeof asked]++;
    });
    const store = await RootStore.open(objects, { create: true });
    t.teardown(() => store.close());
    const key = TenantKey.generate();
    const first = await buildImage({ source, store, key, name: 'first' });
    t.ok(first.newChunks > 20);
    t.same(asked, { head: 0, put: first.newChunks, list: 1 });
    const second = await buildImage({ source, store, key, name: 'second' });
    t.match(second, { newChunks: 0, digest: first.digest });
    t.same(asked, { head: 0, put: first.newChunks, list: 2 });
  });

  t.test('contract over S3', (t) => {
    storeSuite(t, async () => {
      const url = `s3://stores/${stores++}?endpoint=${rgw.endpoint}`;
      await (await openStore(url, { create: true })).close();
      return () => openStore(url);
    });
    t.end();
  });

  /** A store that does not support conditions: the last writer wins. */
  class Unconditional extends S3Objects {
    override async canCompareAndSet(): Promise<boolean> {
      return false;
    }
  }

  t.test('contract over an S3 that cannot compare and set', (t) => {
    storeSuite(t, async () => {
      const location = parseS3Url(`s3://stores/${stores++}?endpoint=${rgw.endpoint}`);
      const open = () => RootStore.open(new RetryObjects(new Unconditional(location)), { create: true });
      await (await open()).close();
      return open;
    });
    t.end();
  });
}
