/** Small stores for tests of fsck: images that share chunks, and every way to damage one. */
import { randomBytes } from 'node:crypto';
import {
  appendFileSync,
  copyFileSync,
  mkdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import type { Test } from 'tap';
import { CHUNK_BYTES, type ChunkId } from '../../src/format/chunk-id.ts';
import { TenantKey } from '../../src/format/keys.ts';
import { type FsckOptions, fsck } from '../../src/store/fsck/fsck.ts';
import type { FsckReport } from '../../src/store/fsck/report.ts';
import type { Image } from '../../src/store/image.ts';
import { DirObjects } from '../../src/store/objects/dir-objects.ts';
import type { ObjectStore } from '../../src/store/objects/object-store.ts';
import { type AreaPath, chunkKey, manifestKey, stateKey } from '../../src/store/roots/layout.ts';
import type { StorePolicy } from '../../src/store/roots/policy.ts';
import { RootStore } from '../../src/store/roots/root-store.ts';
import { putDisk } from './stored-disk.ts';

/** Listings do not lag in a directory; but a write must complete in that time, on a disk that others use. */
const POLICY: StorePolicy = {
  viewMs: 1000,
  settleMs: 500,
  buildMs: 60_000,
  graceMs: 120_000,
  retentionMs: 120_000,
};

/** A disk of chunks that are quick to seal: chunk _n_ holds `contents[n]`, and zeroes for an empty one. */
export function diskOf(contents: readonly string[]): Buffer {
  const disk = Buffer.alloc(contents.length * CHUNK_BYTES);
  for (const [at, content] of contents.entries()) disk.write(content, at * CHUNK_BYTES);
  return disk;
}

export class FsckStore {
  readonly dir: string;
  readonly store: RootStore;
  readonly key: TenantKey;

  private constructor(dir: string, store: RootStore, key: TenantKey) {
    this.dir = dir;
    this.store = store;
    this.key = key;
  }

  static async open(t: Test, dir: string, key = TenantKey.generate()): Promise<FsckStore> {
    const store = await RootStore.open(new DirObjects(dir), { create: true, policy: POLICY });
    t.teardown(() => store.close());
    return new FsckStore(dir, store, key);
  }

  put(name: string, contents: readonly string[]): Promise<Image> {
    return putDisk(this.store, this.key, name, diskOf(contents));
  }

  check(options: Partial<FsckOptions> = {}): Promise<FsckReport> {
    return fsck(this.store.parts, { sample: 1, ...options });
  }

  path(key: string): string {
    return join(this.dir, key);
  }

  chunk(id: ChunkId, area: AreaPath = 'roots/1'): string {
    return this.path(chunkKey(area, id));
  }

  manifest(image: Image, keyId = this.key.id, area: AreaPath = 'roots/1'): string {
    return this.path(manifestKey(area, image.digest, keyId));
  }

  /** Registers an area in the store. */
  async openArea(area: AreaPath): Promise<void> {
    await this.store.parts.objects.put(stateKey(area, 'opened'), Buffer.alloc(0));
    await this.store.parts.views.newerThan(0);
  }
}

/** `objects` with some calls replaced. */
export function withCalls(objects: ObjectStore, calls: Partial<ObjectStore>): ObjectStore {
  return {
    url: objects.url,
    isWritable: objects.isWritable,
    get: objects.get.bind(objects),
    head: objects.head.bind(objects),
    put: objects.put.bind(objects),
    copy: objects.copy.bind(objects),
    delete: objects.delete.bind(objects),
    list: objects.list.bind(objects),
    nowMs: objects.nowMs.bind(objects),
    canCompareAndSet: objects.canCompareAndSet.bind(objects),
    close: objects.close.bind(objects),
    ...calls,
  };
}

export const DAMAGES = ['flipped', 'truncated', 'longer', 'swapped', 'missing'] as const;
export type DamageName = (typeof DAMAGES)[number];

/** Damages a file; `other` is the file that it may be swapped with. */
export function damage(file: string, how: DamageName, other: string): void {
  const bytes = readFileSync(file);
  if (how === 'flipped') {
    bytes[bytes.length >> 1]! ^= 4;
    writeFileSync(file, bytes);
  } else if (how === 'truncated') truncateSync(file, bytes.length >> 1);
  else if (how === 'longer') appendFileSync(file, randomBytes(3));
  else if (how === 'swapped') copyFileSync(other, file);
  else rmSync(file);
}

/** Copies a file to another path, and creates its directories. */
export function copyTo(from: string, to: string): void {
  mkdirSync(dirname(to), { recursive: true });
  copyFileSync(from, to);
}

/** Ids of an image's chunks, in the order of its disk. */
export function idsOf({ manifest }: Image): ChunkId[] {
  return Array.from({ length: manifest.storedChunks }, (_, entry) => manifest.ref(entry).id);
}
