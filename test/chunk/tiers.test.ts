import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { DiskCache } from '../../src/chunk/disk/disk-cache.ts';
import { OriginTier } from '../../src/chunk/origin.ts';
import { LimitTier } from '../../src/chunk/wrappers/limit.ts';
import { RetryTier } from '../../src/chunk/wrappers/retry.ts';
import type { Store } from '../../src/store/store.ts';
import { openDirStore } from '../support/dir-store.ts';
import { FaultTier, MapTier } from '../support/tiers.ts';
import { tierSuite } from './tier-suite.ts';

function hang(tier: FaultTier): void {
  tier.fault = { kind: 'slow', delayMs: 60_000 };
}

t.test('MapTier, the double', async (t) => {
  tierSuite(t, async () => ({ tier: new MapTier('disk') }));
});

t.test('FaultTier without a fault', async (t) => {
  tierSuite(t, async () => {
    const tier = new FaultTier(new MapTier('disk'));
    return { tier, stall: () => hang(tier) };
  });
});

t.test('DiskCache', async (t) => {
  tierSuite(t, async (t) => {
    const dir = mkdtempSync(join(tmpdir(), 'lzd-'));
    const tier = await DiskCache.open({
      dir,
      capBytes: 128 * 1024 * 1024,
      onWarning: (text) => t.comment(text),
    });
    await tier.recovered();
    t.teardown(async () => {
      await tier.close();
      rmSync(dir, { recursive: true });
    });
    return { tier };
  });
});

t.test('OriginTier over a directory', async (t) => {
  tierSuite(t, async (t) => {
    const store = await openDirStore(t.testdir());
    t.teardown(() => store.close());
    const writer = await store.writer();
    return { tier: new OriginTier(store), seed: (id, sealed) => writer.putChunk(id, sealed), keeps: false };
  });
});

t.test('OriginTier over a store that hangs and heeds no signal', async (t) => {
  tierSuite(t, async () => {
    const chunks = new Map<string, Buffer>();
    let hangs = false;
    const store = {
      url: 'test://store',
      getChunk: (id: string) => (hangs ? new Promise(() => {}) : Promise.resolve(chunks.get(id))),
    } as unknown as Store;
    const stall = () => {
      hangs = true;
    };
    const seed = async (id: string, sealed: Buffer) => void chunks.set(id, sealed);
    return { tier: new OriginTier(store), seed, keeps: false, stall };
  });
});

t.test('RetryTier', async (t) => {
  tierSuite(t, async () => {
    const inner = new FaultTier(new MapTier('origin'));
    const stall = () => hang(inner);
    return { tier: new RetryTier(inner, { tries: 3, tryTimeoutMs: 10_000 }), stall };
  });
});

t.test('LimitTier, narrower than what is asked of it', async (t) => {
  tierSuite(t, async () => {
    const inner = new FaultTier(new MapTier('origin'));
    const stall = () => hang(inner);
    // One drive has three quarters: as many as the suite has loans at once. They are given back with the loan.
    return { tier: new LimitTier(inner, { concurrency: 120 }), stall };
  });
});

t.test('all of them together, as the daemon has them', async (t) => {
  tierSuite(t, async () => {
    const inner = new FaultTier(new MapTier('origin'));
    const retry = new RetryTier(inner, { tries: 2, tryTimeoutMs: 10_000 });
    const stall = () => hang(inner);
    return { tier: new LimitTier(retry, { concurrency: 120 }), stall };
  });
});
