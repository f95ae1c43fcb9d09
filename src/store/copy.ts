/**
 * Copies an image between stores in its sealed form. No key is needed, because ids verify chunks and the digest
 * verifies the clear part of manifests. Only its key verifies the rest of a manifest: without it, an existing manifest
 * in the target stays, and the report says so. Only what is missing is copied, chunks before manifests before the name,
 * as in a build; so a copy that stops anywhere leaves no name, and can be run again to continue.
 */
import { Lanes } from '../async/lanes.ts';
import { pooled } from '../async/pooled.ts';
import { codeOf, errorText, LazydiskError } from '../errors.ts';
import { type ChunkId, SEALED_BYTES_MAX } from '../format/chunk-id.ts';
import { type ImageDigest, isDigest } from '../format/image-digest.ts';
import type { ClearManifest } from '../format/manifest-clear.ts';
import type { KeyRing } from '../keys/key-ring.ts';
import { findReference } from './find-reference.ts';
import { checkManifest, manifestProof } from './manifest-check.ts';
import { referenceName } from './reference-name.ts';
import { placementOver } from './roots/place-manifest.ts';
import { sha256Of } from './sha256.ts';
import type { Store, StoreReadOptions, StoreWriter } from './store.ts';

export interface CopyOptions {
  readonly from: Store;
  /** The target; undefined, only with `dryRun`, for a store that does not exist yet. */
  readonly to: Store | undefined;
  /** `NAME[:TAG]` or `sha256:…` in `from`. */
  readonly image: string;
  /** Its name in `to`; by default its name in `from`. */
  readonly name?: string;
  /** Verify manifests; and if `from` cannot be listed, their manifests are the ones that are copied. */
  readonly keys?: KeyRing;
  /** Checks and counts, but writes nothing. */
  readonly dryRun?: boolean;
  onProgress?(progress: CopyProgress): void;
  readonly signal?: AbortSignal;
}

export interface CopyProgress {
  /** Sealed bytes of chunks copied or found in the target so far, and of all chunks. */
  readonly doneBytes: number;
  readonly totalBytes: number;
  readonly copiedChunks: number;
  readonly presentChunks: number;
}

/** Counts of distinct chunks; for a dry run, what would have been copied. */
export interface CopyReport {
  /** In full, with its tag. */
  readonly name: string;
  readonly digest: ImageDigest;
  readonly chunks: number;
  readonly copiedChunks: number;
  readonly copiedBytes: number;
  /** Chunks that the target already had. */
  readonly presentChunks: number;
  /** One for each key that opens the image. */
  readonly manifests: number;
  /** How many of them were verified with a key. */
  readonly provenManifests: number;
  /**
   * Ids of keys for which the target has a different manifest. It stays, because without the key it is unknown which of
   * the two is good.
   */
  readonly keptManifests: readonly string[];
  readonly durationMs: number;
}

/**
 * Rejects with NOT_FOUND or CORRUPT naming a chunk that is missing or bad in `from`, NOT_FOUND if the image is missing,
 * CORRUPT also for a bad manifest in `to` that no key can replace, USAGE for names, UNSUPPORTED if `from` cannot be
 * listed and no key is known, NO_SPACE, UNAVAILABLE, ABORTED, and TIMEOUT if it took longer than `to` allows. After a
 * rejection nothing is in flight and no name has changed.
 */
export async function copyImage(options: CopyOptions): Promise<CopyReport> {
  const { to, dryRun = false, signal } = options;
  const startMs = performance.now();
  const { name, digest } = await resolveNames(options);
  const { clear, keyIds, provenManifests } = await findManifests(options, digest);
  const writer = await to?.writer(clear.storedChunks);
  if (!writer && !dryRun) throw new LazydiskError('INTERNAL', 'a copy to no store');
  const counts = await copyChunks(options, clear, writer);
  signal?.throwIfAborted();
  const copied = await copyManifests(options, dryRun ? undefined : writer, digest, keyIds);
  signal?.throwIfAborted();
  if (writer && !dryRun) await writer.putReference(name, digest);
  return { name, digest, ...counts, ...copied, provenManifests, durationMs: performance.now() - startMs };
}

async function resolveNames({
  from,
  image,
  name,
}: CopyOptions): Promise<{ name: string; digest: ImageDigest }> {
  const target = name === undefined ? undefined : referenceName(name);
  if (isDigest(image)) {
    if (target === undefined)
      throw new LazydiskError('USAGE', 'an image that is given by its digest needs a name in the target');
    return { name: target, digest: image };
  }
  const source = await findReference(from, image);
  return { name: target ?? source.name, digest: source.digest };
}

/**
 * Reads all manifests of the image, and verifies each before anything is written; the clear part is the same in all of
 * them.
 */
async function findManifests(
  options: CopyOptions,
  digest: ImageDigest,
): Promise<{ clear: ClearManifest; keyIds: string[]; provenManifests: number }> {
  const { from, keys } = options;
  let clear: ClearManifest | undefined;
  let provenManifests = 0;
  const keyIds: string[] = [];
  for (const keyId of await keyIdsOf(options, digest)) {
    options.signal?.throwIfAborted();
    const bytes = await from.getManifest(digest, keyId);
    if (!bytes) continue;
    const whole = await checkManifest(bytes, digest, keyId, whereOf(from, digest, keyId), keys);
    clear = whole.clear;
    if (whole.opened) provenManifests++;
    keyIds.push(keyId);
  }
  if (!clear) throw new LazydiskError('NOT_FOUND', `${from.url}: no manifest of ${digest}`);
  return { clear, keyIds, provenManifests };
}

async function keyIdsOf({ from, keys }: CopyOptions, digest: ImageDigest): Promise<readonly string[]> {
  try {
    return await from.manifestKeys(digest);
  } catch (error) {
    if (codeOf(error) !== 'UNSUPPORTED') throw error;
    if (keys) return keys.ids();
    throw new LazydiskError(
      'UNSUPPORTED',
      `${from.url} cannot be listed, so which keys open image ${digest} is not known: give --key, and its manifest for that key is copied`,
      { cause: error },
    );
  }
}

/**
 * Copies the manifests; one that was removed while chunks were copied is skipped. Without a writer, only reports what
 * would be copied.
 */
async function copyManifests(
  { from, to, keys, signal }: CopyOptions,
  writer: StoreWriter | undefined,
  digest: ImageDigest,
  keyIds: readonly string[],
): Promise<Pick<CopyReport, 'manifests' | 'keptManifests'>> {
  let manifests = 0;
  const keptManifests: string[] = [];
  for (const keyId of keyIds) {
    const bytes = await from.getManifest(digest, keyId);
    signal?.throwIfAborted();
    if (!bytes) continue;
    await checkManifest(bytes, digest, keyId, whereOf(from, digest, keyId), keys);
    manifests++;
    const opens = await manifestProof(digest, keyId, keys);
    const placement = writer
      ? await writer.putManifest(digest, keyId, bytes, opens)
      : await placementOver(await to?.getManifest(digest, keyId), { bytes, opens });
    if (placement !== 'kept') continue;
    keptManifests.push(keyId);
    await checkKept(to!, digest, keyId);
  }
  return { manifests, keptManifests };
}

/** A manifest that is visibly broken even without a key must not get a name, nor be reported as copied. */
async function checkKept(to: Store, digest: ImageDigest, keyId: string): Promise<void> {
  const bytes = await to.getManifest(digest, keyId);
  if (!bytes) return;
  try {
    await checkManifest(bytes, digest, keyId, whereOf(to, digest, keyId), undefined);
  } catch (cause) {
    throw new LazydiskError(
      'CORRUPT',
      `${errorText(cause)}; it stays, for without --key the one to be copied is not known to be better`,
      { cause },
    );
  }
}

async function copyChunks(
  { from, dryRun, onProgress, signal }: CopyOptions,
  clear: ClearManifest,
  writer: StoreWriter | undefined,
): Promise<Pick<CopyReport, 'chunks' | 'copiedChunks' | 'copiedBytes' | 'presentChunks'>> {
  const entries = distinctEntries(clear);
  let totalBytes = 0;
  for (const entry of entries) totalBytes += clear.sealedBytesOf(entry);
  let doneBytes = 0;
  const counts = { copiedChunks: 0, copiedBytes: 0, presentChunks: 0 };
  const lanes = new Lanes();
  // One buffer for each lane is reused: allocating memory for each chunk costs more than everything else done to it
  // here.
  const spare: Buffer[] = [];
  const copyChunk = async (id: ChunkId, entry: number, to: StoreWriter): Promise<void> => {
    const room = spare.pop() ?? Buffer.allocUnsafeSlow(SEALED_BYTES_MAX);
    await to.putChunk(id, await provenChunk(from, clear, entry, { into: room, ...(signal && { signal }) }));
    spare.push(room);
  };
  await pooled(lanes, entries, async (entry) => {
    signal?.throwIfAborted();
    const id = clear.idOf(entry);
    const sealedBytes = clear.sealedBytesOf(entry);
    if (await writer?.hasChunk(id, sealedBytes)) counts.presentChunks++;
    else {
      if (writer && !dryRun) await copyChunk(id, entry, writer);
      counts.copiedChunks++;
      counts.copiedBytes += sealedBytes;
    }
    lanes.ended(sealedBytes);
    doneBytes += sealedBytes;
    const { copiedChunks, presentChunks } = counts;
    onProgress?.({ doneBytes, totalBytes, copiedChunks, presentChunks });
  });
  return { chunks: entries.length, ...counts };
}

async function provenChunk(
  from: Store,
  clear: ClearManifest,
  entry: number,
  options: StoreReadOptions,
): Promise<Buffer> {
  const id = clear.idOf(entry);
  const sealed = await from.getChunk(id, options);
  const what = `${from.url}: chunk ${clear.indexOf(entry)} (${id}) of image ${clear.digest}`;
  if (!sealed) throw new LazydiskError('NOT_FOUND', `${what} is nowhere in the store`);
  if (sealed.length !== clear.sealedBytesOf(entry) || (await sha256Of(sealed)) !== id)
    throw new LazydiskError('CORRUPT', `${what} is not what its name says (${sealed.length} bytes)`);
  return sealed;
}

/** The entries of a manifest without repeated chunks; takes about as much memory as the manifest. */
function distinctEntries(clear: ClearManifest): Uint32Array {
  const seen = new Set<ChunkId>();
  const entries = new Uint32Array(clear.storedChunks);
  let count = 0;
  for (let entry = 0; entry < clear.storedChunks; entry++) {
    const id = clear.idOf(entry);
    if (seen.has(id)) continue;
    seen.add(id);
    entries[count++] = entry;
  }
  return entries.subarray(0, count);
}

function whereOf({ url }: Store, digest: ImageDigest, keyId: string): string {
  return `${url}: manifest of ${digest} for key ${keyId}`;
}
