/**
 * Paths of layer entries, resolved inside the merged tree as if it were the root: a symlink on the way is followed as
 * the guest would follow it, an absolute one from the tree's root, and `..` at the root stays there. So an entry
 * `lib/x` is put at `usr/lib/x` if `lib` is a symlink to `usr/lib`, and no path leaves the tree.
 */
import { LazydiskError } from '../errors.ts';
import type { InodeKind, TreeInode } from './tree.ts';

const COMPONENT_BYTES_MAX = 255;
/** PATH_MAX without its NUL: a path that a guest could not name is refused. */
const PATH_BYTES_MAX = 4095;
/** As in Linux: more symlinks in one path count as a loop. */
const SYMLINKS_MAX = 40;
/**
 * Names looked up for one path, including those of its symlinks: 40 targets of 2,000 names would take milliseconds per
 * entry.
 */
const LOOKUPS_MAX = 4096;

/**
 * Returns the components of an entry's name, without empty ones and `.`; [] is the root. A leading slash is ignored.
 * Throws CORRUPT for a name that leaves the root, or that Linux could not hold.
 */
export function splitPath(name: string): string[] {
  const parts: string[] = [];
  if (name.includes('\0')) throw new LazydiskError('CORRUPT', 'a name that contains a NUL');
  if (name.length > PATH_BYTES_MAX) throw new LazydiskError('CORRUPT', `a path of ${name.length} bytes`);
  for (const part of name.split('/')) {
    if (part === '' || part === '.') continue;
    if (part === '..') {
      if (parts.pop() === undefined) throw new LazydiskError('CORRUPT', 'a path that leaves the root');
    } else {
      if (part.length > COMPONENT_BYTES_MAX) {
        throw new LazydiskError('CORRUPT', `a name of ${part.length} bytes`);
      }
      parts.push(part);
    }
  }
  return parts;
}

/** A directory of the tree, or where one would have to be created. */
export interface ResolvedDirectory {
  /** The directories that exist, from the root down: one more than `names`. */
  readonly way: readonly TreeInode[];
  /** Their names: `names[i]` is the name of `way[i + 1]` in `way[i]`. */
  readonly names: readonly string[];
  /** The missing names below the last of them, topmost first. */
  readonly missing: readonly string[];
  /** The first thing on the way that is not a directory, if any. */
  readonly obstacle: { readonly name: string; readonly kind: InodeKind } | undefined;
}

/**
 * Finds the directory that `parts` leads to. Throws CORRUPT for a loop of symlinks, and for a path that is too long.
 */
export function resolveDirectory(root: TreeInode, parts: readonly string[]): ResolvedDirectory {
  const way: TreeInode[] = [root];
  const names: string[] = [];
  const missing: string[] = [];
  const pending = parts.toReversed();
  let obstacle: ResolvedDirectory['obstacle'];
  let symlinks = 0;
  let lookups = 0;
  for (let part = pending.pop(); part !== undefined; part = pending.pop()) {
    if (++lookups > LOOKUPS_MAX) {
      throw new LazydiskError('CORRUPT', `a path through symlinks with more than ${LOOKUPS_MAX} names`);
    }
    if (part === '' || part === '.') continue;
    if (part === '..') {
      if (missing.length > 0) missing.pop();
      else if (names.pop() !== undefined) way.pop();
      continue;
    }
    const next = missing.length > 0 ? undefined : way.at(-1)!.children.get(part);
    if (next === undefined || (next.kind !== 'directory' && next.kind !== 'symlink')) {
      if (next) obstacle ??= { name: part, kind: next.kind };
      if (part.length > COMPONENT_BYTES_MAX) {
        throw new LazydiskError(
          'CORRUPT',
          `a symlink on the way that leads to a name of ${part.length} bytes`,
        );
      }
      missing.push(part);
    } else if (next.kind === 'directory') {
      way.push(next);
      names.push(part);
    } else {
      if (++symlinks > SYMLINKS_MAX) throw new LazydiskError('CORRUPT', 'a path through a loop of symlinks');
      if (next.target.startsWith('/')) {
        way.length = 1;
        names.length = 0;
      }
      pending.push(...next.target.split('/').reverse());
    }
  }
  let pathBytes = 0;
  for (const name of names) pathBytes += name.length + 1;
  for (const name of missing) pathBytes += name.length + 1;
  if (pathBytes > PATH_BYTES_MAX) {
    throw new LazydiskError('CORRUPT', `symlinks on the way that lead to a path of ${pathBytes} bytes`);
  }
  return { way, names, missing, obstacle };
}
