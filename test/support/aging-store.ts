/** A store in a directory and machines that use it, with clocks that a test advances. */
import { randomBytes } from 'node:crypto';
import { readdirSync } from 'node:fs';
import { utimes } from 'node:fs/promises';
import { join } from 'node:path';
import type { Test } from 'tap';
import { CHUNK_BYTES } from '../../src/format/chunk-id.ts';
import type { TenantKey } from '../../src/format/keys.ts';
import type { Image } from '../../src/store/image.ts';
import { DirObjects } from '../../src/store/objects/dir-objects.ts';
import type { ObjectOptions, ObjectStore, PutOptions } from '../../src/store/objects/object-store.ts';
import { type Clock, type Moment, systemClock } from '../../src/store/roots/clock.ts';
import { RootStore } from '../../src/store/roots/root-store.ts';
import { dyingAfter, HookedObjects } from './hooked-objects.ts';

/** Hours, which a test advances; only the settle time of listings is really waited for. */
export const AGING_POLICY = {
  viewMs: 60_000,
  settleMs: 5,
  buildMs: 3_600_000,
  graceMs: 7_200_000,
  retentionMs: 7_200_000,
};
/** After this time, everything that was moved away may be deleted. */
export const RETENTION_MS = AGING_POLICY.retentionMs + AGING_POLICY.buildMs + 1_000;

/** Four chunks, the first one the same in every disk. */
export function diskOf(first = 1): Buffer {
  const disk = randomBytes(4 * CHUNK_BYTES);
  return disk.fill(first, 0, CHUNK_BYTES);
}

/** A clock that can be advanced. */
export class TestClock implements Clock {
  aheadMs = 0;

  now(): Moment {
    return { monotonicMs: performance.now() + this.aheadMs, wallMs: Date.now() + this.aheadMs };
  }

  ageMs({ monotonicMs }: Moment): number {
    return performance.now() + this.aheadMs - monotonicMs;
  }

  /** Not in these tests, however slow the disk is. */
  timeout(): AbortSignal {
    return systemClock.timeout(60_000);
  }

  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    return systemClock.sleep(ms, signal);
  }
}

/** A directory whose file system uses a clock that can be advanced. */
class AheadObjects extends DirObjects {
  readonly #clock: TestClock;

  constructor(dir: string, clock: TestClock) {
    super(dir);
    this.#clock = clock;
  }

  override async put(key: string, bytes: Uint8Array, options?: PutOptions): Promise<void> {
    const nowS = (Date.now() + this.#clock.aheadMs) / 1000;
    await super.put(key, bytes, options);
    await utimes(join(this.path, key), nowS, nowS);
  }

  override async nowMs(options?: ObjectOptions): Promise<number> {
    return (await super.nowMs(options)) + this.#clock.aheadMs;
  }
}

/**
 * A store in a directory, a way to open it (for a process that dies after `askedMax` requests), and a way to advance
 * time for all users.
 */
export async function agingStore(t: Test) {
  const dir = join(t.testdir(), 'store');
  await (await RootStore.open(new DirObjects(dir), { create: true, policy: AGING_POLICY })).close();
  const clock = new TestClock();
  const disk = () => new AheadObjects(dir, clock);
  const openOn = async (objects: ObjectStore) => {
    const store = await RootStore.open(objects, { clock });
    t.teardown(() => store.close());
    return store;
  };
  const open = (askedMax = Number.POSITIVE_INFINITY) =>
    openOn(new HookedObjects(disk(), dyingAfter(askedMax)));
  /** Advances the store's clock and everyone's. */
  const pass = (ms: number) => {
    clock.aheadMs += ms;
  };
  return { dir, disk, open, openOn, pass, store: await open() };
}

/** Whether the manifest of an image for `key` and all of its chunks can be read. */
export async function isWholeFor(
  key: TenantKey,
  store: RootStore,
  { digest, manifest }: Pick<Image, 'digest' | 'manifest'>,
): Promise<boolean> {
  if (!(await store.getManifest(digest, key.id))) return false;
  for (let entry = 0; entry < manifest.storedChunks; entry++)
    if (!(await store.getChunk(manifest.ref(entry).id))) return false;
  return true;
}

/** Names of all files below `folder`. */
export function filesIn(dir: string, folder: string): string[] {
  const entries = readdirSync(join(dir, folder), { recursive: true, withFileTypes: true });
  return entries.filter((entry) => entry.isFile()).map(({ name }) => name);
}
