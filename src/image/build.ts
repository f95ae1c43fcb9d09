/**
 * Builds a disk image in a store from a container image. Layers are flattened as they stream, their data chunks are
 * sealed and stored at once, the file system's metadata follows when the tree is complete, then the manifest, and last,
 * only when all else is durable, the name. So a build that stops at any point leaves no name behind, and one that is
 * run again finds what the first one stored.
 */
import { ENCODER_VERSION } from '../format/chunk-codec.ts';
import { CHUNK_BYTES, type ChunkRef } from '../format/chunk-id.ts';
import type { ImageDigest } from '../format/image-digest.ts';
import type { TenantKey } from '../format/keys.ts';
import { type ManifestEntry, sealManifest } from '../format/manifest-seal.ts';
import { opensWith } from '../store/manifest-check.ts';
import { referenceName } from '../store/reference-name.ts';
import type { Store } from '../store/store.ts';
import { ChunkEncoder } from './encode.ts';
import { type Ext4Layout, layoutExt4 } from './ext4/writer.ts';
import { type FlattenedImage, type FlattenProgress, flatten } from './flatten.ts';
import type { ImageLimits } from './limits.ts';
import type { ImageSource } from './source/image-source.ts';

/**
 * Version of everything that determines a disk's bytes: the layer merge, the placement of data, the ext4 writer.
 * Increment it with every change that changes the disk of any image.
 */
export const WRITER_VERSION = 'lazydisk-ext4/1';

export interface BuildProgress {
  /** Reading layers, then writing the file system around their data, then committing manifest and name. */
  readonly phase: 'layers' | 'filesystem' | 'commit';
  /** Which layer is being read, from 1. */
  readonly layer: number;
  readonly layers: number;
  /** Bytes of layer blobs read so far, and their total. */
  readonly inputBytes: number;
  readonly totalInputBytes: number;
  /** Bytes of tar unpacked so far, and entries in them. */
  readonly unpackedBytes: number;
  readonly entries: number;
  /** Chunks stored so far by this build, and their sealed bytes. */
  readonly newChunks: number;
  readonly newBytes: number;
}

export interface BuildOptions {
  /** The caller closes it. */
  readonly source: ImageSource;
  readonly store: Store;
  readonly key: TenantKey;
  /** `NAME[:TAG]`; it is moved from an older image to this one when this one is complete. */
  readonly name: string;
  /** Size of the disk; default: content plus free space, at least 1 GiB. */
  readonly sizeBytes?: number;
  /** Limits on the resources that the image may use; default: `imageLimits()`. */
  readonly limits?: ImageLimits;
  /** Called at most about a hundred times a second, and once at the start of each phase. */
  onProgress?(progress: BuildProgress): void;
  readonly signal?: AbortSignal;
}

export interface BuildReport {
  /** The full name, with its tag. */
  readonly name: string;
  readonly digest: ImageDigest;
  readonly diskBytes: number;
  /** Bytes of the disk in chunks that are not all zero. */
  readonly dataBytes: number;
  /** Sealed bytes of the image's chunks, each counted once. */
  readonly sealedBytes: number;
  /** Chunks of the disk that are not all zero. */
  readonly storedChunks: number;
  /** What this build added to the store; the other chunks were there already or are duplicates. */
  readonly newChunks: number;
  readonly newBytes: number;
  readonly reusedChunks: number;
  readonly layers: number;
  /** Compressed bytes of the source's layers. */
  readonly inputBytes: number;
  readonly durationMs: number;
}

/**
 * Builds `source` into `store` under `name`. Rejects with a LazydiskError: USAGE for the name, the errors of `flatten`
 * and `layoutExt4` for a bad image (CORRUPT, UNSUPPORTED, NO_SPACE), the store's NO_SPACE and UNAVAILABLE, ABORTED.
 * After a rejection nothing is in flight, and the store's names are unchanged.
 */
export async function buildImage(options: BuildOptions): Promise<BuildReport> {
  const { source, store, key, signal } = options;
  const startMs = performance.now();
  const name = referenceName(options.name);
  const inputBytes = source.layers.reduce((sum, layer) => sum + layer.sizeBytes, 0);
  // A lower bound unless many chunks are equal: layers are larger when they are unpacked.
  const writer = await store.writer(Math.ceil(inputBytes / CHUNK_BYTES));
  const encoder = new ChunkEncoder(writer, key.salt(writer.epoch), signal);
  const progress = new Progress(source, encoder, options.onProgress);
  try {
    const dataRefs: ChunkRef[] = [];
    progress.enter('layers');
    const tree = await flatten(
      source,
      (chunk, bytes) => encoder.add(bytes, (ref) => (dataRefs[chunk] = ref)),
      {
        ...(signal && { signal }),
        ...(options.limits && { limits: options.limits }),
        takeBuffer: () => encoder.takeBuffer(),
        onProgress: (state) => progress.read(state),
      },
    );

    progress.enter('filesystem');
    const metadataRefs: ChunkRef[] = [];
    const layout = await layoutExt4(tree, {
      ...(options.sizeBytes !== undefined && { sizeBytes: options.sizeBytes }),
      contentDigest: source.digest,
    });
    await layout.emit(
      (chunk, bytes) => encoder.add(bytes, (ref) => (metadataRefs[chunk] = ref)),
      () => encoder.takeBuffer(),
    );
    await encoder.drain();

    progress.enter('commit');
    const entries = entriesOf(tree, layout, metadataRefs, dataRefs);
    const { digest, bytes } = sealManifest({
      key,
      saltEpoch: writer.epoch,
      diskBytes: layout.diskBytes,
      writerVersion: WRITER_VERSION,
      encoderVersion: ENCODER_VERSION,
      entries,
      metadata: {
        architecture: source.config.architecture,
        os: source.config.os,
        config: source.config,
        source: { digest: source.digest },
        layers: tree.layerMap.map((layer) => ({
          ...layer,
          firstChunk: layer.firstChunk + layout.metadataChunks,
        })),
      },
    });
    encoder.check();
    await writer.putManifest(digest, key.id, bytes, (manifest) => opensWith(manifest, digest, key));
    encoder.check();
    await writer.putReference(name, digest);

    const { newChunks, newBytes, reusedChunks } = encoder.counts;
    return {
      name,
      digest,
      diskBytes: layout.diskBytes,
      dataBytes: entries.length * CHUNK_BYTES,
      sealedBytes: sealedBytesOf(entries),
      storedChunks: entries.length,
      newChunks,
      newBytes,
      reusedChunks,
      layers: source.layers.length,
      inputBytes,
      durationMs: performance.now() - startMs,
    };
  } catch (error) {
    // Requests in flight must not write to the store any more, because the caller may close it now.
    await encoder.drain().catch(() => undefined);
    throw error;
  }
}

/** What the distinct chunks of `entries` take in a store. */
function sealedBytesOf(entries: readonly ManifestEntry[]): number {
  const distinct = new Map(entries.map(({ ref }) => [ref.id, ref.sealedBytes]));
  return [...distinct.values()].reduce((sum, bytes) => sum + bytes, 0);
}

/** The disk's chunks in order: the file system's metadata first, then the data that live files refer to. */
function entriesOf(
  tree: FlattenedImage,
  layout: Ext4Layout,
  metadataRefs: readonly ChunkRef[],
  dataRefs: readonly ChunkRef[],
): ManifestEntry[] {
  const entries: ManifestEntry[] = [];
  for (const [index, ref] of metadataRefs.entries()) {
    if (ref) entries.push({ index, ref });
  }
  for (const [chunk, ref] of dataRefs.entries()) {
    const live = (tree.liveChunks[chunk >> 3]! >> (chunk & 7)) & 1;
    if (ref && live) entries.push({ index: layout.metadataChunks + chunk, ref });
  }
  return entries;
}

/** Reports the progress of the build to the caller, at most once every INTERVAL_MS. */
class Progress {
  static readonly INTERVAL_MS = 10;
  readonly #source: ImageSource;
  readonly #encoder: ChunkEncoder;
  readonly #tell: ((progress: BuildProgress) => void) | undefined;
  readonly #totalInputBytes: number;
  #phase: BuildProgress['phase'] = 'layers';
  #flattened = { layer: 1, inputBytes: 0, unpackedBytes: 0, entries: 0 };
  #toldMs = Number.NEGATIVE_INFINITY;

  constructor(source: ImageSource, encoder: ChunkEncoder, tell: BuildOptions['onProgress']) {
    this.#source = source;
    this.#encoder = encoder;
    this.#tell = tell;
    this.#totalInputBytes = source.layers.reduce((sum, layer) => sum + layer.sizeBytes, 0);
  }

  enter(phase: BuildProgress['phase']): void {
    this.#phase = phase;
    this.#report();
  }

  read({ layer, inputBytes, unpackedBytes, entries }: FlattenProgress): void {
    this.#flattened = { layer, inputBytes, unpackedBytes, entries };
    if (performance.now() - this.#toldMs >= Progress.INTERVAL_MS) this.#report();
  }

  #report(): void {
    this.#toldMs = performance.now();
    this.#tell?.({
      phase: this.#phase,
      ...this.#flattened,
      layers: this.#source.layers.length,
      totalInputBytes: this.#totalInputBytes,
      newChunks: this.#encoder.counts.newChunks,
      newBytes: this.#encoder.counts.newBytes,
    });
  }
}
