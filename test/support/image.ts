/** Reads and merges tar archives and layers in memory, for tests that check the result. */
import { Readable } from 'node:stream';
import { CHUNK_BYTES } from '../../src/format/chunk-id.ts';
import { type FlattenedImage, type FlattenOptions, flatten } from '../../src/image/flatten.ts';
import type { ImageSource } from '../../src/image/source/image-source.ts';
import { StreamInput } from '../../src/image/tar/input.ts';
import { readTar, type TarEntry } from '../../src/image/tar/reader.ts';
import type { ChunkSink, TreeInode } from '../../src/image/tree.ts';
import { digestOf, packTar, type TarEntrySpec } from './oci.ts';

/** An entry with all bytes of its body. */
export type ReadEntry = Omit<TarEntry, 'body' | 'whole'> & { stored: Buffer };

/** The tar as a stream of pieces of `pieceBytes`. */
export function streamOf(tar: Buffer, pieceBytes = 64 * 1024): Readable {
  function* pieces() {
    for (let at = 0; at < tar.length; at += pieceBytes) yield tar.subarray(at, at + pieceBytes);
  }
  return Readable.from(pieces(), { objectMode: true });
}

/** The tar archives of a source's layers, base first. */
export async function layersOf(source: ImageSource): Promise<Buffer[]> {
  const contents: Buffer[] = [];
  for (const layer of source.layers) {
    const parts: Buffer[] = [];
    for await (const part of layer.open()) parts.push(Buffer.from(part));
    contents.push(Buffer.concat(parts));
  }
  return contents;
}

/** All entries of the tar. */
export async function readEntries(tar: Buffer, pieceBytes?: number): Promise<ReadEntry[]> {
  const entries: ReadEntry[] = [];
  const input = new StreamInput(streamOf(tar, pieceBytes), Number.MAX_SAFE_INTEGER);
  for await (const { body, whole: _, ...entry } of readTar(input)) {
    const parts: Buffer[] = [];
    for await (const part of body()) parts.push(part);
    entries.push({ ...entry, stored: Buffer.concat(parts) });
  }
  return entries;
}

/** The content of the file that an entry describes, with holes filled in. */
export function contentOfEntry(entry: ReadEntry): Buffer {
  if (!entry.segments) return entry.stored;
  const content = Buffer.alloc(entry.sizeBytes);
  let at = 0;
  for (const { offset, lengthBytes } of entry.segments) {
    entry.stored.copy(content, offset, at, at + lengthBytes);
    at += lengthBytes;
  }
  return content;
}

export type Layer = TarEntrySpec[] | Buffer;

/** An image source over layers in memory. */
export function sourceOf(layers: Layer[], pieceBytes?: number): ImageSource {
  return {
    description: 'test',
    digest: digestOf(Buffer.from('test')),
    config: {
      architecture: 'amd64',
      os: 'linux',
      entrypoint: [],
      cmd: [],
      env: [],
      user: '',
      workingDir: '',
      labels: {},
    },
    layers: layers.map((layer) => {
      const tar = Buffer.isBuffer(layer) ? layer : packTar(layer);
      const digest = digestOf(tar);
      return {
        digest,
        mediaType: 'application/vnd.oci.image.layer.v1.tar',
        sizeBytes: tar.length,
        diffId: digest,
        open: () => streamOf(tar, pieceBytes),
      };
    }),
    async close() {},
  };
}

export class Flattened {
  readonly image: FlattenedImage;
  readonly chunks: readonly Buffer[];

  constructor(image: FlattenedImage, chunks: readonly Buffer[]) {
    this.image = image;
    this.chunks = chunks;
  }

  /** The inode at a path, without following symlinks; undefined if there is none. */
  at(path: string): TreeInode | undefined {
    let inode: TreeInode | undefined = this.image.root;
    for (const part of path.split('/').filter((name) => name !== '')) {
      inode = inode?.children.get(Buffer.from(part).toString('latin1'));
    }
    return inode;
  }

  /** The file's bytes, read from the data chunks. */
  content(path: string): Buffer {
    const inode = this.at(path);
    if (inode?.kind !== 'file') throw new Error(`${path} is not a file`);
    return contentOf(inode, this.chunks);
  }

  text(path: string): string {
    return this.content(path).toString();
  }

  /** All paths, sorted; directories end in a slash. */
  paths(): string[] {
    const found: string[] = [];
    const walk = (inode: TreeInode, prefix: string) => {
      for (const [name, child] of inode.children) {
        const path = prefix + Buffer.from(name, 'latin1').toString();
        found.push(child.kind === 'directory' ? `${path}/` : path);
        walk(child, `${path}/`);
      }
    };
    walk(this.image.root, '');
    return found.sort();
  }
}

export function contentOf(inode: TreeInode, chunks: readonly Buffer[]): Buffer {
  const content = Buffer.alloc(inode.sizeBytes);
  for (const { fileOffset, dataOffset, lengthBytes } of inode.extents) {
    for (let done = 0; done < lengthBytes; ) {
      const at = dataOffset + done;
      const from = at % CHUNK_BYTES;
      done += chunks[Math.floor(at / CHUNK_BYTES)]!.copy(
        content,
        fileOffset + done,
        from,
        Math.min(CHUNK_BYTES, from + lengthBytes - done),
      );
    }
  }
  return content;
}

/** Flattens a source and keeps the chunks. */
export async function flattenAll(source: ImageSource, options?: FlattenOptions): Promise<Flattened> {
  const chunks: Buffer[] = [];
  const sink: ChunkSink = async (chunk, bytes) => {
    if (chunk !== chunks.length || bytes.length !== CHUNK_BYTES)
      throw new Error(`chunk ${chunk} is out of order`);
    chunks.push(Buffer.from(bytes));
  };
  const image = await flatten(source, sink, options);
  return new Flattened(image, chunks);
}

export function flattenLayers(layers: Layer[], pieceBytes?: number): Promise<Flattened> {
  return flattenAll(sourceOf(layers, pieceBytes));
}
