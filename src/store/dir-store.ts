/**
 * A store in a directory: `chunks/AA/BB/ID`, `manifests/sha256/DIGEST/KEYID`, `references/NAME%3ATAG.json`, and a
 * marker file with the version of this layout. Any number of processes may read and write it at once, without
 * locks: files appear whole, by rename, and equal names hold equal content.
 */
import { access, type FileHandle, mkdir, open, readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { errorText, LazydiskError } from '../errors.ts';
import { type ChunkId, SEALED_BYTES_MAX } from '../format/chunk-id.ts';
import { KEY_ID } from '../format/keys.ts';
import { DurableWriter } from './durable-writer.ts';
import { isDigest, nameOfReferenceFile, referenceFile, referenceName } from './reference-name.ts';
import type { ImageDigest, Reference, Store, StoreReadOptions } from './store.ts';

const MARKER_FILE = 'lazydisk-store.json';
const MARKER = { kind: 'lazydisk store', version: 1 };

const CHUNK_ID = /^[0-9a-f]{64}$/;

/** A full 1 TiB disk's manifest is 151 MiB; files beyond these bounds are not read into memory. */
const MANIFEST_BYTES_MAX = 256 * 1024 * 1024;
const SMALL_FILE_BYTES_MAX = 64 * 1024;

export class DirStore implements Store {
  readonly url: string;
  readonly path: string;
  readonly #writer: DurableWriter;

  private constructor(path: string) {
    this.path = path;
    this.url = `file://${path}`;
    this.#writer = new DurableWriter(path);
  }

  /**
   * Opens the store in `path` (absolute); with `create`, makes it where nothing is or an empty directory. Throws
   * NOT_FOUND, USAGE for a directory of something else, UNSUPPORTED for a later layout, UNAVAILABLE.
   */
  static async open(path: string, options: { create?: boolean } = {}): Promise<DirStore> {
    const store = new DirStore(path);
    const marker = await readBounded(join(path, MARKER_FILE), SMALL_FILE_BYTES_MAX);
    if (marker) checkMarker(path, marker);
    else if (options.create) await store.#create();
    else throw new LazydiskError('NOT_FOUND', `no store in ${path}`);
    return store;
  }

  async #create(): Promise<void> {
    await this.#put('the store', async () => {
      await mkdir(this.path, { recursive: true });
      // Another process may be making the same store right now; its marker and its tmp are ours too.
      const others = (await readdir(this.path)).filter((name) => name !== MARKER_FILE && name !== 'tmp');
      const made = await access(join(this.path, MARKER_FILE)).then(
        () => true,
        () => false,
      );
      if (others.length > 0 && !made)
        throw new LazydiskError(
          'USAGE',
          `${this.path} is no store and not empty; give an empty or a new directory`,
        );
      await this.#writer.write(MARKER_FILE, Buffer.from(`${JSON.stringify(MARKER)}\n`));
    });
  }

  async getChunk(id: ChunkId, options: StoreReadOptions = {}): Promise<Buffer | undefined> {
    return readBounded(this.chunkPath(id), SEALED_BYTES_MAX, options.signal);
  }

  async hasChunk(id: ChunkId, sealedBytes?: number): Promise<boolean> {
    const path = this.chunkPath(id);
    try {
      const { size } = await stat(path);
      return sealedBytes === undefined || size === sealedBytes;
    } catch (cause) {
      if (isMissing(cause)) return false;
      throw new LazydiskError('UNAVAILABLE', `${this.url}: ${errorText(cause)}`, { cause });
    }
  }

  async putChunk(id: ChunkId, sealed: Uint8Array): Promise<void> {
    await this.#put(`chunk ${id}`, () => this.#writer.write(chunkFile(id), sealed));
  }

  /** Where a chunk lies. */
  chunkPath(id: ChunkId): string {
    return join(this.path, chunkFile(id));
  }

  async getManifest(digest: ImageDigest, keyId: string): Promise<Buffer | undefined> {
    return readBounded(join(this.path, manifestFile(digest, keyId)), MANIFEST_BYTES_MAX);
  }

  async putManifest(digest: ImageDigest, keyId: string, manifest: Uint8Array): Promise<void> {
    await this.#put(`manifest ${digest}`, () => this.#writer.write(manifestFile(digest, keyId), manifest));
  }

  async getReference(name: string): Promise<Reference | undefined> {
    const fullName = referenceName(name);
    const path = join(this.path, 'references', referenceFile(fullName));
    const bytes = await readBounded(path, SMALL_FILE_BYTES_MAX);
    return bytes && parseReference(path, fullName, bytes);
  }

  async putReference(name: string, digest: ImageDigest): Promise<void> {
    if (!isDigest(digest)) throw new LazydiskError('INTERNAL', `image digest ${JSON.stringify(digest)}`);
    const fullName = referenceName(name);
    const reference: Reference = { name: fullName, digest, updated: new Date().toISOString() };
    const text = `${JSON.stringify({ version: 1, ...reference })}\n`;
    await this.#put(`name ${fullName}`, () =>
      this.#writer.write(join('references', referenceFile(fullName)), Buffer.from(text)),
    );
  }

  async listReferences(): Promise<Reference[]> {
    const files = await readdir(join(this.path, 'references')).catch((cause) => {
      if (isMissing(cause)) return [];
      throw new LazydiskError('UNAVAILABLE', `${this.url}: ${errorText(cause)}`, { cause });
    });
    const references: Reference[] = [];
    for (const name of files.map(nameOfReferenceFile)) {
      // One that was there a moment ago and is gone now was not deleted by mistake.
      const reference = name === undefined ? undefined : await this.getReference(name);
      if (reference) references.push(reference);
    }
    return references.sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  async close(): Promise<void> {
    await this.#writer.close();
  }

  async #put(what: string, write: () => Promise<void>): Promise<void> {
    try {
      await write();
    } catch (cause) {
      if (cause instanceof LazydiskError) throw cause;
      const { code } = cause as NodeJS.ErrnoException;
      const full = code === 'ENOSPC' || code === 'EDQUOT';
      throw new LazydiskError(
        full ? 'NO_SPACE' : 'UNAVAILABLE',
        `${this.url}: cannot write ${what}: ${errorText(cause)}`,
        { cause },
      );
    }
  }
}

/** Relative to the store. */
function chunkFile(id: ChunkId): string {
  if (!CHUNK_ID.test(id)) throw new LazydiskError('INTERNAL', `chunk id ${JSON.stringify(id)}`);
  return `chunks/${id.slice(0, 2)}/${id.slice(2, 4)}/${id}`;
}

function manifestFile(digest: ImageDigest, keyId: string): string {
  if (!isDigest(digest) || !KEY_ID.test(keyId))
    throw new LazydiskError(
      'INTERNAL',
      `manifest of ${JSON.stringify(digest)} for key ${JSON.stringify(keyId)}`,
    );
  return `manifests/sha256/${digest.slice('sha256:'.length)}/${keyId}`;
}

function checkMarker(path: string, bytes: Buffer): void {
  let marker: Partial<typeof MARKER> | null;
  try {
    marker = JSON.parse(bytes.toString()) as typeof marker;
  } catch (cause) {
    throw new LazydiskError('CORRUPT', `${path}/${MARKER_FILE} is not JSON`, { cause });
  }
  if (marker?.kind !== MARKER.kind)
    throw new LazydiskError('CORRUPT', `${path}/${MARKER_FILE} is not a store's`);
  if (marker.version !== MARKER.version)
    throw new LazydiskError(
      'UNSUPPORTED',
      `the store in ${path} has layout version ${marker.version}, this program knows ${MARKER.version}`,
    );
}

function parseReference(path: string, fullName: string, bytes: Buffer): Reference {
  let fields: Partial<Reference & { version: number }> | null;
  try {
    fields = JSON.parse(bytes.toString()) as typeof fields;
  } catch (cause) {
    throw new LazydiskError('CORRUPT', `broken reference ${path}: not JSON`, { cause });
  }
  const { version, name, digest, updated } = fields ?? {};
  if (
    version !== 1 ||
    name !== fullName ||
    typeof digest !== 'string' ||
    !isDigest(digest) ||
    typeof updated !== 'string'
  )
    throw new LazydiskError('CORRUPT', `broken reference ${path}: not what a reference holds`);
  return { name, digest, updated };
}

/**
 * The whole file, or undefined if there is none. Of a file over `bytesMax` only that much and one byte more is
 * read: too long for whoever checks it next. Throws UNAVAILABLE, ABORTED.
 */
async function readBounded(
  path: string,
  bytesMax: number,
  signal?: AbortSignal,
): Promise<Buffer | undefined> {
  let file: FileHandle | undefined;
  try {
    signal?.throwIfAborted();
    file = await open(path, 'r');
    const { size } = await file.stat();
    const bytes = Buffer.allocUnsafe(Math.min(size, bytesMax + 1));
    let filled = 0;
    for (let more = 1; more > 0 && filled < bytes.length; filled += more) {
      signal?.throwIfAborted();
      more = (await file.read(bytes, filled, bytes.length - filled, filled)).bytesRead;
    }
    return bytes.subarray(0, filled);
  } catch (cause) {
    if (isMissing(cause)) return undefined;
    if (signal?.aborted) throw new LazydiskError('ABORTED', `read of ${path} cancelled`, { cause });
    throw new LazydiskError('UNAVAILABLE', `cannot read ${path}: ${errorText(cause)}`, { cause });
  } finally {
    await file?.close();
  }
}

function isMissing(error: unknown): boolean {
  const code = (error as NodeJS.ErrnoException | undefined)?.code;
  return code === 'ENOENT' || code === 'ENOTDIR';
}
