/**
 * Layers onto one tree, as the OCI image specification has it ("Applying Changesets") and as umoci does where it
 * is silent. The trick is one set per layer: the names that this layer put into each directory. A whiteout or an
 * opaque marker hides what lower layers put there and nothing else, whether it comes before its own layer's
 * entries or after them.
 */
import { LazydiskError } from '../errors.ts';
import { resolveDirectory, splitPath } from './path.ts';
import { quote } from './quote.ts';
import type { TarEntry } from './tar/reader.ts';
import type { DataExtent, TreeInode } from './tree.ts';

/** Names in the tree at most: it is in memory, at roughly half a KiB a name. */
const TREE_NAMES_MAX = 8 * 1024 * 1024;
const LINKS_MAX = 65_000;
const LINK_TARGET_BYTES_MAX = 4095;

const WHITEOUT = '.wh.';
const OPAQUE = '.wh..wh..opq';

/** What only some inodes have is one empty value, shared by all that have none; nobody may write to it. */
const NO_XATTRS: Map<string, Buffer> = new Map();
const NO_CHILDREN: Map<string, TreeInode> = new Map();
const NO_EXTENTS: DataExtent[] = [];

/** What this layer did in one directory. */
interface Touched {
  /** Names that this layer put here, or put something below. */
  readonly names: Set<string>;
  /** The layer has an entry for the directory itself. */
  explicit: boolean;
}

/** True for an entry that says what to hide instead of being something. */
export function isWhiteout(name: string): boolean {
  const trimmed = name.replace(/\/+$/, '');
  return trimmed.startsWith(WHITEOUT, trimmed.lastIndexOf('/') + 1);
}

export class TreeMerge {
  /** What there is so far. */
  readonly root: TreeInode = directoryInode();
  #names = 0;
  #touched = new Map<TreeInode, Touched>();

  /** What comes next lies above all that came before. */
  beginLayer(): void {
    this.#touched = new Map();
  }

  /**
   * Applies one entry; `extents` is where its data was placed (files only). Throws CORRUPT or UNSUPPORTED with the
   * entry's path; the tree is then in no useful state.
   */
  apply(entry: TarEntry, extents: DataExtent[]): void {
    try {
      this.#apply(entry, extents);
    } catch (error) {
      if (!(error instanceof LazydiskError)) throw error;
      throw new LazydiskError(error.code, `path ${quote(entry.name)}: ${error.message}`, { cause: error });
    }
  }

  #apply(entry: TarEntry, extents: DataExtent[]): void {
    const parts = splitPath(entry.name);
    const name = parts.pop();
    if (parts.some((part) => part.startsWith(WHITEOUT))) {
      throw new LazydiskError('CORRUPT', 'a path through a whiteout');
    }
    if (name === undefined) this.#applyRoot(entry);
    else if (name.startsWith(WHITEOUT)) this.#applyWhiteout(parts, name);
    else if (entry.kind === 'link') this.#applyLink(entry, parts, name);
    else {
      const parent = this.#makeDirectories(parts);
      const existing = parent.children.get(name);
      if (entry.kind === 'directory' && existing?.kind === 'directory') {
        takeMetadata(existing, entry);
        this.#touch(parent).names.add(name);
        this.#touch(existing).explicit = true;
        return;
      }
      const inode = inodeOf(entry, extents);
      this.#remove(parent, name);
      this.#add(parent, name, inode);
      if (inode.kind === 'directory') this.#touch(inode).explicit = true;
    }
  }

  #applyRoot(entry: TarEntry): void {
    if (entry.kind !== 'directory') throw new LazydiskError('CORRUPT', `the root as a ${entry.kind}`);
    takeMetadata(this.root, entry);
    this.#touch(this.root).explicit = true;
  }

  #applyWhiteout(parts: string[], name: string): void {
    const hidden = name.slice(WHITEOUT.length);
    if (
      name !== OPAQUE &&
      (hidden === '' || hidden === '.' || hidden === '..' || hidden.startsWith(WHITEOUT))
    ) {
      throw new LazydiskError('CORRUPT', 'a whiteout of no possible name');
    }
    const { way, missing } = resolveDirectory(this.root, parts);
    if (missing.length > 0) return;
    const directory = way.at(-1)!;
    if (name === OPAQUE) this.#hideLowerChildren(directory);
    else this.#hideLower(directory, hidden);
  }

  #applyLink(entry: TarEntry, parts: string[], name: string): void {
    const targetParts = splitPath(entry.target);
    const targetName = targetParts.pop();
    const { way, missing } = resolveDirectory(this.root, targetParts);
    const targetParent = way.at(-1)!;
    const target =
      targetName === undefined || missing.length > 0 ? undefined : targetParent.children.get(targetName);
    const to = `a hard link to ${quote(entry.target)}`;
    if (targetName === undefined || target?.kind === 'directory') {
      throw new LazydiskError('CORRUPT', `${to}, which is a directory`);
    }
    if (!target) throw new LazydiskError('CORRUPT', `${to}, which is not there`);
    const parent = this.#makeDirectories(parts);
    if (parent === targetParent && name === targetName) {
      throw new LazydiskError('CORRUPT', `${to}, which is itself`);
    }
    if (target.links >= LINKS_MAX)
      throw new LazydiskError('UNSUPPORTED', `over ${LINKS_MAX} names of one file`);
    // Counted before the old name goes, which may be one of the same file; and the target may lie below it.
    target.links++;
    this.#remove(parent, name);
    target.links--;
    if (target.links === 0) throw new LazydiskError('CORRUPT', `${to}, which the link replaces`);
    this.#add(parent, name, target);
  }

  /** The directory at `parts`; what is missing of the way becomes 0755 root:root with time 0. */
  #makeDirectories(parts: readonly string[]): TreeInode {
    const { way, names, missing, obstacle } = resolveDirectory(this.root, parts);
    if (obstacle) {
      throw new LazydiskError(
        'CORRUPT',
        `a path through ${quote(obstacle.name)}, which is a ${obstacle.kind}`,
      );
    }
    for (const [depth, name] of names.entries()) this.#touch(way[depth]!).names.add(name);
    let directory = way.at(-1)!;
    for (const name of missing) {
      if (name.startsWith(WHITEOUT)) throw new LazydiskError('CORRUPT', 'a symlink that leads to a whiteout');
      const made = directoryInode();
      this.#add(directory, name, made);
      directory = made;
    }
    return directory;
  }

  /** Removes what lower layers put under the name. */
  #hideLower(directory: TreeInode, name: string): void {
    const child = directory.children.get(name);
    if (!child) return;
    if (!this.#touched.get(directory)?.names.has(name)) this.#remove(directory, name);
    else if (child.kind === 'directory') {
      // Ours, made or entered by this layer: what it got from below goes, and so does inherited metadata.
      if (!this.#touched.get(child)?.explicit) takeMetadata(child, directoryInode());
      this.#hideLowerChildren(child);
    }
  }

  #hideLowerChildren(directory: TreeInode): void {
    for (const name of [...directory.children.keys()]) this.#hideLower(directory, name);
  }

  #touch(directory: TreeInode): Touched {
    let touched = this.#touched.get(directory);
    if (!touched) {
      touched = { names: new Set(), explicit: false };
      this.#touched.set(directory, touched);
    }
    return touched;
  }

  #add(directory: TreeInode, name: string, inode: TreeInode): void {
    if (++this.#names > TREE_NAMES_MAX) {
      throw new LazydiskError('UNSUPPORTED', `an image of over ${TREE_NAMES_MAX} names`);
    }
    inode.links++;
    directory.children.set(name, inode);
    this.#touch(directory).names.add(name);
  }

  /** Takes the name away, and all that lies below it. */
  #remove(directory: TreeInode, name: string): void {
    const inode = directory.children.get(name);
    if (!inode) return;
    directory.children.delete(name);
    this.#names--;
    inode.links--;
    if (inode.kind !== 'directory') return;
    this.#touched.delete(inode);
    for (const child of [...inode.children.keys()]) this.#remove(inode, child);
  }
}

type Metadata = Pick<TreeInode, 'mode' | 'uid' | 'gid' | 'mtimeNs'> & { xattrs: ReadonlyMap<string, Buffer> };

function takeMetadata(inode: TreeInode, from: Metadata): void {
  inode.mode = from.mode;
  inode.uid = from.uid;
  inode.gid = from.gid;
  inode.mtimeNs = from.mtimeNs;
  inode.xattrs = linuxXattrs(from.xattrs);
}

function inodeOf(entry: TarEntry, extents: DataExtent[]): TreeInode {
  const kind = entry.kind === 'link' ? 'file' : entry.kind;
  if (kind === 'symlink') {
    if (entry.target === '' || entry.target.includes('\0')) {
      throw new LazydiskError('CORRUPT', 'a symlink to no possible path');
    }
    if (entry.target.length > LINK_TARGET_BYTES_MAX) {
      throw new LazydiskError('CORRUPT', `a symlink target of ${entry.target.length} bytes`);
    }
  }
  const isDevice = kind === 'char' || kind === 'block';
  return {
    kind,
    // Linux keeps no mode for symlinks: they are 0777 whatever the archive says.
    mode: kind === 'symlink' ? 0o777 : entry.mode,
    uid: entry.uid,
    gid: entry.gid,
    mtimeNs: entry.mtimeNs,
    xattrs: linuxXattrs(entry.xattrs),
    links: 0,
    sizeBytes: kind === 'file' ? entry.sizeBytes : 0,
    extents: extents.length > 0 ? extents : NO_EXTENTS,
    target: kind === 'symlink' ? entry.target : '',
    rdevMajor: isDevice ? entry.rdevMajor : 0,
    rdevMinor: isDevice ? entry.rdevMinor : 0,
    children: kind === 'directory' ? new Map() : NO_CHILDREN,
  };
}

function directoryInode(): TreeInode {
  return {
    kind: 'directory',
    mode: 0o755,
    uid: 0,
    gid: 0,
    mtimeNs: 0n,
    xattrs: NO_XATTRS,
    links: 0,
    sizeBytes: 0,
    extents: NO_EXTENTS,
    target: '',
    rdevMajor: 0,
    rdevMinor: 0,
    children: new Map(),
  };
}

/** Attributes of namespaces that ext4 holds; others (macOS writes `com.apple.…`) no Linux could read back. */
function linuxXattrs(xattrs: ReadonlyMap<string, Buffer>): Map<string, Buffer> {
  if (xattrs.size === 0) return NO_XATTRS;
  const kept = new Map<string, Buffer>();
  for (const [name, value] of xattrs) {
    if (/^(user|trusted|security)\.|^system\.posix_acl_(access|default)$/s.test(name)) kept.set(name, value);
  }
  return kept;
}
