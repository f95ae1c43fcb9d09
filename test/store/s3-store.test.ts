/** Stores of images in a bucket: the contract of all stores, on a real RGW and through retries. */
import t from 'tap';
import type { ChunkId } from '../../src/format/chunk-id.ts';
import { RetryObjects } from '../../src/store/objects/retry-objects.ts';
import { S3Objects } from '../../src/store/objects/s3-objects.ts';
import { parseS3Url } from '../../src/store/objects/s3-url.ts';
import { openStore } from '../../src/store/open.ts';
import { RootStore } from '../../src/store/root-store.ts';
import { RGW_TOOLS, Rgw } from '../support/rgw.ts';
import { skipWithout } from '../support/tools.ts';
import { storeSuite } from './store-suite.ts';

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

  t.test('contract over S3', (t) => {
    storeSuite(t, async () => {
      const url = `s3://stores/${stores++}?endpoint=${rgw.endpoint}`;
      await (await openStore(url, { create: true })).close();
      return () => openStore(url);
    });
    t.end();
  });

  /** As of a store that knows no conditions: then the last writer stays. */
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
