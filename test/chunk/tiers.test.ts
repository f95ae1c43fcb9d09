import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { DiskCache } from '../../src/chunk/disk/disk-cache.ts';
import { OriginTier } from '../../src/chunk/origin.ts';
import { BreakerTier } from '../../src/chunk/wrappers/breaker.ts';
import { HedgeTier } from '../../src/chunk/wrappers/hedge.ts';
import { LimitTier } from '../../src/chunk/wrappers/limit.ts';
import { RetryTier } from '../../src/chunk/wrappers/retry.ts';
import { LazydiskError } from '../../src/errors.ts';
import { openDirStore } from '../support/dir-store.ts';
import { FaultTier, MapTier } from '../support/tiers.ts';
import { tierSuite } from './tier-suite.ts';

/** Makes reads fail from now on with an error that is not retryable. Returns a function that counts them. */
function refuse(tier: FaultTier): () => number {
  let asked = 0;
  tier.fault = () => {
    asked++;
    return { kind: 'error', error: refusal };
  };
  return () => asked;
}

const refusal = new LazydiskError('UNAVAILABLE', 'access denied', { retryable: false });

function hang(tier: FaultTier): void {
  tier.fault = { kind: 'slow', delayMs: 60_000 };
}

t.test('MapTier, the double', async (t) => {
  tierSuite(t, async () => ({ tier: new MapTier('disk') }));
});

t.test('FaultTier without a fault', async (t) => {
  tierSuite(t, async () => {
    const tier = new FaultTier(new MapTier('disk'));
    return { tier, stall: () => hang(tier), refuse: () => refuse(tier) };
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

t.test('OriginTier over a store that hangs and ignores its signal', async (t) => {
  tierSuite(t, async () => {
    const chunks = new Map<string, Buffer>();
    let hangs = false;
    let asked = 0;
    let isRefused = false;
    const store = {
      url: 'test://store',
      getChunkOnce: async (id: string) => {
        asked++;
        if (isRefused) throw refusal;
        return hangs ? new Promise<undefined>(() => {}) : chunks.get(id);
      },
    };
    const stall = () => {
      hangs = true;
    };
    const seed = async (id: string, sealed: Buffer) => void chunks.set(id, sealed);
    const refuseAll = () => {
      asked = 0;
      isRefused = true;
      return () => asked;
    };
    return { tier: new OriginTier(store), seed, keeps: false, stall, refuse: refuseAll };
  });
});

t.test('RetryTier', async (t) => {
  tierSuite(t, async () => {
    const inner = new FaultTier(new MapTier('origin'));
    const faults = { stall: () => hang(inner), refuse: () => refuse(inner) };
    return { tier: new RetryTier(inner, { tries: 3, tryTimeoutMs: 10_000 }), ...faults };
  });
});

t.test('LimitTier with fewer places than reads', async (t) => {
  tierSuite(t, async () => {
    const inner = new FaultTier(new MapTier('origin'));
    const faults = { stall: () => hang(inner), refuse: () => refuse(inner) };
    // One drive gets three quarters of the places, as many as the suite has loans at once. A place is freed with its
    // loan.
    return { tier: new LimitTier(inner, { concurrency: 120 }), ...faults };
  });
});

t.test('all wrappers together, as in the daemon', async (t) => {
  tierSuite(t, async () => {
    const inner = new FaultTier(new MapTier('origin'));
    const hedge = new HedgeTier(new BreakerTier(inner));
    const retry = new RetryTier(hedge, { tries: 3, tryTimeoutMs: 10_000 });
    const faults = { stall: () => hang(inner), refuse: () => refuse(inner) };
    return { tier: new LimitTier(retry, { concurrency: 120 }), ...faults };
  });
});
