/**
 * Merges layers into one tree, as the OCI image specification says ("Applying Changesets"), and as umoci does where it
 * is silent. One set per layer records the names that this layer put into each directory. So a whiteout or an opaque
 * marker hides only what lower layers put there, whether it comes before its own layer's entries or after them.
 */
import { LazydiskError, withContext } from '../errors.ts';
import { type ImageLimits, TreeBudget } from './limits.ts';
import { resolveDirectory, splitPath } from './path.ts';
import { quote } from './quote.ts';
import type { TarEntry } from './tar/reader.ts';
import type { DataExtent, TreeInode } from './tree.ts';
import { XattrSets } from './xattr-sets.ts';

const LINKS_MAX = 65_000;
const LINK_TARGET_BYTES_MAX = 4095;

const WHITEOUT = '.wh.';
const OPAQUE = '.wh..wh..opq';

/** Memory of names, inodes and extents, besides the bytes of names and targets: in the tree and when it is laid out. */
const NAME_BYTES = 200;
const INODE_BYTES = 200;
const DIRECTORY_BYTES = 500;
const EXTENT_BYTES = 64;

/** Empty values shared by all inodes without such a part; they must not be modified. */
const NO_XATTRS: Map<string, Buffer> = new Map();
const NO_CHILDREN: Map<string, TreeInode> = new Map();
const NO_EXTENTS: DataExtent[] = [];

/** What this layer did in one directory. */
interface Touched {
  /** Names that this layer put here, or below which it put something. */
  readonly names: Set<string>;
  /** The layer has an entry for the directory itself. */
  explicit: boolean;
  /** Everything that lower layers put below it is already hidden, so a second marker has nothing to do. */
  opaque: boolean;
}

/** Whether an entry is a whiteout or an opaque marker. */
export function isWhiteout(name: string): boolean {
  const trimmed = name.replace(/\/+$/, '');
  return trimmed.startsWith(WHITEOUT, trimmed.lastIndexOf('/') + 1);
}

export class TreeMerge {
  /** The tree so far. */
  readonly root: TreeInode = directoryInode();
  readonly #namesMax: number;
  readonly #budget: TreeBudget;
  readonly #xattrs: XattrSets;
  #names = 0;
  #touched = new Map<TreeInode, Touched>();

  constructor(limits: ImageLimits) {
    this.#namesMax = limits.entries;
    this.#budget = new TreeBudget(limits.treeBytes);
    this.#xattrs = new XattrSets(this.#budget);
  }

  /** Starts a layer on top of all earlier ones. */
  beginLayer(): void {
    this.#touched = new Map();
  }

  /**
   * Applies one entry; `extents` is where its data was placed (files only). Throws CORRUPT or UNSUPPORTED with the
   * entry's path; the tree is then unusable.
   */
  apply(entry: TarEntry, extents: DataExtent[]): void {
    try {
      this.#apply(entry, extents);
    } catch (error) {
      if (!(error instanceof LazydiskError)) throw error;
      throw withContext(error, `path ${quote(entry.name)}`);
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
        this.#takeMetadata(existing, entry);
        this.#touchName(parent, name);
        this.#touch(existing).explicit = true;
        return;
      }
      const inode = inodeOf(entry, extents, this.#xattrs.of(entry.xattrs));
      this.#remove(parent, name);
      this.#add(parent, name, inode);
      if (inode.kind === 'directory') this.#touch(inode).explicit = true;
    }
  }

  #applyRoot(entry: TarEntry): void {
    if (entry.kind !== 'directory') throw new LazydiskError('CORRUPT', `the root as a ${entry.kind}`);
    this.#takeMetadata(this.root, entry);
    this.#touch(this.root).explicit = true;
  }

  #applyWhiteout(parts: string[], name: string): void {
    const hidden = name.slice(WHITEOUT.length);
    if (
      name !== OPAQUE &&
      (hidden === '' || hidden === '.' || hidden === '..' || hidden.startsWith(WHITEOUT))
    ) {
      throw new LazydiskError('CORRUPT', 'a whiteout of an impossible name');
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
    if (!target) throw new LazydiskError('CORRUPT', `${to}, which does not exist`);
    const parent = this.#makeDirectories(parts);
    if (parent === targetParent && name === targetName) {
      throw new LazydiskError('CORRUPT', `${to}, which is itself`);
    }
    if (target.links >= LINKS_MAX)
      throw new LazydiskError('UNSUPPORTED', `more than ${LINKS_MAX} names of one file`);
    // Counted before the old name is removed, because that may be a name of the same file, or the target may be below
    // it.
    target.links++;
    this.#remove(parent, name);
    target.links--;
    if (target.links === 0) throw new LazydiskError('CORRUPT', `${to}, which the link replaces`);
    this.#add(parent, name, target);
  }

  /** Returns the directory at `parts`; missing directories on the way are created as 0755 root:root with time 0. */
  #makeDirectories(parts: readonly string[]): TreeInode {
    const { way, names, missing, obstacle } = resolveDirectory(this.root, parts);
    if (obstacle) {
      throw new LazydiskError(
        'CORRUPT',
        `a path through ${quote(obstacle.name)}, which is a ${obstacle.kind}`,
      );
    }
    for (const [depth, name] of names.entries()) this.#touchName(way[depth]!, name);
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
      // This layer created or entered it: what lower layers put there goes, and so does inherited metadata.
      if (!this.#touched.get(child)?.explicit) this.#takeMetadata(child, directoryInode());
      this.#hideLowerChildren(child);
    }
  }

  #hideLowerChildren(directory: TreeInode): void {
    const touched = this.#touch(directory);
    if (touched.opaque) return;
    touched.opaque = true;
    for (const name of [...directory.children.keys()]) this.#hideLower(directory, name);
  }

  #touch(directory: TreeInode): Touched {
    let touched = this.#touched.get(directory);
    if (!touched) {
      touched = { names: new Set(), explicit: false, opaque: false };
      this.#touched.set(directory, touched);
    }
    return touched;
  }

  #touchName(directory: TreeInode, name: string): void {
    const { names } = this.#touch(directory);
    if (!names.has(name)) names.add(ownString(name));
  }

  #add(directory: TreeInode, name: string, inode: TreeInode): void {
    if (++this.#names > this.#namesMax) {
      throw new LazydiskError(
        'UNSUPPORTED',
        `the image has more than ${this.#namesMax} names (--max-entries allows more)`,
      );
    }
    this.#budget.take(NAME_BYTES + name.length);
    if (inode.links++ === 0) this.#budget.take(memoryOf(inode));
    const own = ownString(name);
    directory.children.set(own, inode);
    this.#touch(directory).names.add(own);
  }

  /** Removes the name, and everything below it. */
  #remove(directory: TreeInode, name: string): void {
    const inode = directory.children.get(name);
    if (!inode) return;
    directory.children.delete(name);
    this.#names--;
    this.#budget.give(NAME_BYTES + name.length);
    if (--inode.links === 0) this.#budget.give(memoryOf(inode));
    if (inode.kind !== 'directory') return;
    this.#touched.delete(inode);
    for (const child of [...inode.children.keys()]) this.#remove(inode, child);
  }

  #takeMetadata(inode: TreeInode, from: Metadata): void {
    inode.mode = from.mode;
    inode.uid = from.uid;
    inode.gid = from.gid;
    inode.mtimeNs = from.mtimeNs;
    inode.xattrs = this.#xattrs.of(from.xattrs);
  }
}

type Metadata = Pick<TreeInode, 'mode' | 'uid' | 'gid' | 'mtimeNs'> & { xattrs: ReadonlyMap<string, Buffer> };

/** Estimated memory of an inode while it has a name; its xattrs are counted where they are kept. */
function memoryOf({ kind, target, extents }: TreeInode): number {
  const kindBytes = kind === 'directory' ? DIRECTORY_BYTES : 0;
  return INODE_BYTES + kindBytes + target.length + extents.length * EXTENT_BYTES;
}

/** Copies the string: in V8, a substring of 13 characters or more is a view that keeps the whole path alive. */
function ownString(name: string): string {
  return name.length < 13 ? name : Buffer.from(name, 'latin1').toString('latin1');
}

function inodeOf(entry: TarEntry, extents: DataExtent[], xattrs: Map<string, Buffer>): TreeInode {
  const kind = entry.kind === 'link' ? 'file' : entry.kind;
  if (kind === 'symlink') {
    if (entry.target === '' || entry.target.includes('\0')) {
      throw new LazydiskError('CORRUPT', 'a symlink to an impossible path');
    }
    if (entry.target.length > LINK_TARGET_BYTES_MAX) {
      throw new LazydiskError('CORRUPT', `a symlink target of ${entry.target.length} bytes`);
    }
  }
  const isDevice = kind === 'char' || kind === 'block';
  return {
    kind,
    // Linux has no mode for symlinks: they are 0777 whatever the archive says.
    mode: kind === 'symlink' ? 0o777 : entry.mode,
    uid: entry.uid,
    gid: entry.gid,
    mtimeNs: entry.mtimeNs,
    xattrs,
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
