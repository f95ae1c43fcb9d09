/** Objects in S3: the contract of all object stores on a real RGW, and what is specific to S3, without failures. */
import t, { type Test } from 'tap';
import { RetryObjects } from '../../../src/store/objects/retry-objects.ts';
import { S3Objects } from '../../../src/store/objects/s3-objects.ts';
import { parseS3Url } from '../../../src/store/objects/s3-url.ts';
import { RGW_TOOLS, Rgw } from '../../support/rgw.ts';
import { skipWithout } from '../../support/tools.ts';
import { listed, objectsSuite } from './objects-suite.ts';

if (!skipWithout(t, ...RGW_TOOLS)) await all();

async function all(): Promise<void> {
  const rgw = await Rgw.start();
  t.teardown(() => rgw.close());
  rgw.useInThisProcess();
  await rgw.createBucket('objects');
  let stores = 0;

  t.test('contract, the bucket in the path', (t) => {
    objectsSuite(t, async () => {
      const location = parseS3Url(`s3://objects/path/${stores++}?endpoint=${rgw.endpoint}`);
      return async () => new S3Objects(location);
    });
    t.end();
  });

  t.test('contract, the bucket in the host name', (t) => {
    objectsSuite(t, async () => {
      const endpoint = `http://localhost:${rgw.port}`;
      const location = parseS3Url(`s3://objects/host/${stores++}?endpoint=${endpoint}&pathStyle=false`);
      return async () => new S3Objects(location, { lookup: lookupLoopback });
    });
    t.end();
  });

  const open = (t: Test, url = `s3://objects/own/${stores++}?endpoint=${rgw.endpoint}`): S3Objects => {
    const store = new S3Objects(parseS3Url(url));
    t.teardown(() => store.close());
    return store;
  };

  t.test(
    'RGW compares before it sets, and however many ask, they leave no more than 256 small objects',
    async (t) => {
      const left = new Set<string>();
      const url = `s3://objects/probed?endpoint=${rgw.endpoint}`;
      for (let round = 0; round < 5; round++) {
        await inLanes(Array.from({ length: 8 }), 8, async () => {
          t.equal(await new RetryObjects(open(t, url)).canCompareAndSet(), true);
        });
        for (const { key } of await listed(open(t, url), 'state/')) left.add(key);
      }
      t.ok(left.size >= 1 && left.size <= 40, [...left].join());
      for (const key of left) t.match(key, /^state\/probe-[0-9a-f]{2}$/);
    },
  );

  t.test('more objects than one delete or one page takes', async (t) => {
    const store = open(t);
    const keys = Array.from({ length: 1100 }, (_, n) => `n/${n}`);
    await inLanes(keys, 16, (key) => store.put(key, Buffer.from('x')));
    t.equal((await listed(store, 'n/')).length, 1100);
    await store.delete([...keys, 'n/never']);
    t.same(await listed(store, 'n/'), []);
  });

  t.test('a whole bucket is a store, too, and what is no key in it is left alone', async (t) => {
    await rgw.createBucket('whole');
    const store = open(t, `s3://whole?endpoint=${rgw.endpoint}`);
    await store.put('f/a', Buffer.from('1'));
    await rgw.put('whole', 'f/', '');
    await rgw.put('whole', 'f/b c', 'x');
    t.same(
      (await listed(store, 'f/')).map(({ key }) => key),
      ['f/a'],
    );
    t.equal(String((await store.get('f/a', 10))?.bytes), '1');
  });

  t.test('a bucket that is not there is no empty store', async (t) => {
    const store = open(t, `s3://nowhere?endpoint=${rgw.endpoint}`);
    const expected = {
      name: 'LazydiskError',
      code: 'UNAVAILABLE',
      message: /s3:\/\/nowhere.* no such bucket/,
    };
    await t.rejects(store.get('x', 1), expected);
    await t.rejects(store.put('x', Buffer.alloc(1)), expected);
    await t.rejects(store.copy('x', 'y'), expected);
    await t.rejects(store.delete(['x', 'y']), expected);
    await t.rejects(listed(store, 'x/'), expected);
  });

  t.test('big objects go both ways', async (t) => {
    const store = open(t);
    const bytes = Buffer.alloc(40 * 1024 * 1024, 'forty MiB ');
    await store.put('big', bytes);
    t.ok((await store.get('big', 2 ** 28))?.bytes.equals(bytes));
    t.equal(await store.copy('big', 'copy'), true);
    t.equal((await store.head('copy'))?.sizeBytes, bytes.length);
    t.equal((await store.get('copy', 100))?.bytes.length, 101);
    await store.delete(['big', 'copy']);
  });
}

/** `BUCKET.localhost` is this machine, which not every resolver knows. */
function lookupLoopback(
  _: string,
  options: { all?: boolean | undefined },
  callback: (error: null, address: string | { address: string; family: number }[], family?: number) => void,
): void {
  if (options.all) callback(null, [{ address: '127.0.0.1', family: 4 }]);
  else callback(null, '127.0.0.1', 4);
}

async function inLanes<T>(
  items: readonly T[],
  lanes: number,
  work: (item: T) => Promise<void>,
): Promise<void> {
  const rest = items.values();
  const lane = async () => {
    for (const item of rest) await work(item);
  };
  await Promise.all(Array.from({ length: lanes }, lane));
}
