/** The drives of a daemon, tested without one: how many there may be, and how they are listed. */
import t, { type Test } from 'tap';
import { ChunkMemory } from '../../src/chunk/memory.ts';
import { ChunkReader } from '../../src/chunk/reader.ts';
import type { ChunkTier } from '../../src/chunk/tier.ts';
import { Admission } from '../../src/daemon/admission.ts';
import { Drives } from '../../src/daemon/drives.ts';
import { SharedImages } from '../../src/daemon/images.ts';
import { StoreAsks } from '../../src/daemon/store-asks.ts';
import { CHUNK_BYTES } from '../../src/format/chunk-id.ts';
import { loadKeyFile } from '../../src/keys/key-file.ts';
import { KeyRing } from '../../src/keys/key-ring.ts';
import { LeaseKeeper } from '../../src/store/lease-keeper.ts';
import { openStore } from '../../src/store/open.ts';
import { diskWorkplace } from '../support/daemon.ts';
import { silentObserver } from '../support/tiers.ts';

const DRIVES_MAX = 16_384;

async function setUp(t: Test, { tiers = [] as ChunkTier[], readTimeoutMs = 1_000 } = {}) {
  const place = await diskWorkplace(t, 1);
  const store = await openStore(place.store);
  const key = await loadKeyFile(place.key);
  const memory = new ChunkMemory({ capacityBytes: 16 * CHUNK_BYTES });
  const reader = new ChunkReader({ memory, tiers, observer: silentObserver });
  const admission = new Admission({ startsMax: 1_000_000, isStrained: () => false });
  const leases = new LeaseKeeper(store.parts, { host: 'test' });
  const drives = new Drives({
    images: new SharedImages(store, KeyRing.of(key), new StoreAsks(8), leases),
    reader,
    readTimeoutMs,
    storeTimeoutMs: 10_000,
    admission,
    places: { fuse: () => null, nbd: () => 'nbd:', nbdTcp: () => null },
    onReadError: () => {},
  });
  t.teardown(async () => {
    drives.closeAll();
    admission.close();
    await reader.close();
    await leases.close();
    await store.close();
  });
  return { drives, digest: place.image.digest };
}

t.test(
  'as many drives as are promised can be attached, and one more is refused by name of the limit',
  async (t) => {
    const { drives, digest } = await setUp(t);
    const signal = new AbortController().signal;
    const attach = (name: string) => drives.attach({ image: digest, name }, signal);
    // Attached in reverse order, because lists must be sorted.
    for (let n = DRIVES_MAX - 1; n >= 0; n--) await attach(`vm${String(n).padStart(5, '0')}`);
    await t.rejects(attach('more'), { code: 'OVERLOAD', message: /16384 drives are attached/ });
    t.equal(drives.size, DRIVES_MAX);
    const names = [...drives.list()].map(({ name }) => name);
    t.same(names, [...names].sort());
    drives.detach('vm00007');
    t.match(await attach('more'), { name: 'more' }, 'and there is room again when one goes');
  },
);

t.test(
  'a read ends at the deadline that its export sets, which may be nearer than the read timeout',
  async (t) => {
    const hung: ChunkTier = {
      name: 'origin',
      get: () => new Promise(() => {}),
      put: async () => false,
      discard() {},
      async close() {},
    };
    const { drives, digest } = await setUp(t, { tiers: [hung], readTimeoutMs: 3_600_000 });
    await drives.attach({ image: digest, name: 'vm' }, new AbortController().signal);
    const reading = drives.registry.get('vm')!.read(0, 4096, undefined, performance.now() + 20);
    await t.rejects(reading, { code: 'TIMEOUT' });
  },
);
