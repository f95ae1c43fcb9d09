/** Trees built by hand, their data chunks, and the disk that the ext4 writer makes from them, as a sparse file. */
import { open } from 'node:fs/promises';
import { CHUNK_BYTES } from '../../src/format/chunk-id.ts';
import { layoutExt4 } from '../../src/image/ext4/writer.ts';
import type { InodeKind, MergedTree, TreeInode } from '../../src/image/tree.ts';
import { contentOf } from './image.ts';

/** An inode of `kind` with `fields`; the rest is empty and owned by root. */
export function inode(kind: InodeKind, fields: Partial<Omit<TreeInode, 'kind'>> = {}): TreeInode {
  return {
    kind,
    mode: kind === 'directory' ? 0o755 : 0o644,
    uid: 0,
    gid: 0,
    mtimeNs: 1_700_000_000_000_000_000n,
    xattrs: new Map(),
    links: kind === 'directory' ? 1 : 0,
    sizeBytes: 0,
    extents: [],
    target: '',
    rdevMajor: 0,
    rdevMinor: 0,
    children: new Map(),
    ...fields,
  };
}

/** Collects file data into chunks, one file after the other, 4 KiB aligned. */
export class TreeBuilder {
  readonly root: TreeInode = inode('directory');
  readonly #chunks: Buffer[] = [];
  #used = 0;

  /** Puts `child` at `path`; the parents must exist. */
  add(path: string, child: TreeInode): TreeInode {
    const names = path.split('/').filter((name) => name !== '');
    const last = names.pop()!;
    let parent = this.root;
    for (const name of names) parent = parent.children.get(name)!;
    parent.children.set(last, child);
    if (child.kind !== 'directory') child.links++;
    return child;
  }

  /** A file whose content is `bytes`, from `fileOffset` on; before that it is a hole. */
  file(bytes: Buffer, fields: Partial<TreeInode> = {}, fileOffset = 0): TreeInode {
    const file = inode('file', { sizeBytes: fileOffset + bytes.length, ...fields });
    if (bytes.length > 0) this.extend(file, bytes, fileOffset);
    return file;
  }

  /** Adds an extent of data to a file. */
  extend(file: TreeInode, bytes: Buffer, fileOffset: number): void {
    file.extents.push({ fileOffset, dataOffset: this.#used, lengthBytes: bytes.length });
    file.sizeBytes = Math.max(file.sizeBytes, fileOffset + bytes.length);
    for (let at = 0; at < bytes.length; ) {
      const chunk = Math.floor(this.#used / CHUNK_BYTES);
      const offset = this.#used % CHUNK_BYTES;
      const take = Math.min(bytes.length - at, CHUNK_BYTES - offset);
      this.#chunks[chunk] ??= Buffer.alloc(CHUNK_BYTES);
      bytes.copy(this.#chunks[chunk]!, offset, at, at + take);
      at += take;
      this.#used += take;
    }
    this.#used = Math.ceil(this.#used / 4096) * 4096;
  }

  /** The content of a file of this tree. */
  content(file: TreeInode): Buffer {
    return contentOf(file, this.#chunks);
  }

  tree(): MergedTree {
    const liveChunks = Buffer.alloc(Math.ceil(this.#chunks.length / 8), 0xff);
    return { root: this.root, dataChunks: this.#chunks.length, liveChunks };
  }

  /** Lays out the tree and writes it to `path`. Returns the layout, and the number of metadata chunks. */
  async write(path: string, options: { sizeBytes?: number; contentDigest?: string } = {}) {
    const layout = await layoutExt4(this.tree(), { contentDigest: 'sha256:test', ...options });
    const file = await open(path, 'w+');
    let emitted = 0;
    try {
      await file.truncate(layout.diskBytes);
      let last = -1;
      await layout.emit(async (chunk, bytes) => {
        if (chunk <= last || chunk >= layout.metadataChunks) throw new Error(`chunk ${chunk} after ${last}`);
        last = chunk;
        emitted++;
        await file.write(bytes, 0, bytes.length, chunk * CHUNK_BYTES);
      });
      for (const [n, bytes] of this.#chunks.entries()) {
        await file.write(bytes, 0, bytes.length, (layout.metadataChunks + n) * CHUNK_BYTES);
      }
    } finally {
      await file.close();
    }
    return { layout, emitted };
  }
}
