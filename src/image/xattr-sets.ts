/**
 * The extended attributes of a tree. Most inodes that have any share them with thousands of others (SELinux labels, a
 * global PAX header), so equal sets are stored once. A set that does not fit on a disk is refused before it is stored.
 */
import { divideXattrs } from './ext4/xattr.ts';
import type { TreeBudget } from './limits.ts';

/** Namespaces that ext4 holds; Linux could not read back attributes of others (macOS writes `com.apple.…`). */
const KEPT = /^(user|trusted|security)\.|^system\.posix_acl_(access|default)$/s;

/** Memory of a set and of an attribute, besides the bytes of names and values, which are stored twice. */
const SET_BYTES = 400;
const ATTRIBUTE_BYTES = 350;

const NONE: Map<string, Buffer> = new Map();

export class XattrSets {
  readonly #sets = new Map<string, Map<string, Buffer>>();
  readonly #budget: TreeBudget;

  constructor(budget: TreeBudget) {
    this.#budget = budget;
  }

  /**
   * Returns those of `xattrs` that ext4 holds; the result must not be modified. Throws what `divideXattrs` throws,
   * UNSUPPORTED.
   */
  of(xattrs: ReadonlyMap<string, Buffer>): Map<string, Buffer> {
    if (xattrs.size === 0) return NONE;
    const kept = [...xattrs].filter(([name]) => KEPT.test(name));
    if (kept.length === 0) return NONE;
    let bytes = 0;
    for (const [name, value] of kept) bytes += name.length + value.length;
    // No name contains a NUL, and the length says where a value ends.
    const key = kept.map(([name, value]) => `${name}\0${value.length}\0${value.toString('latin1')}`).join('');
    const known = this.#sets.get(key);
    if (known) return known;
    divideXattrs(new Map(kept));
    this.#budget.take(SET_BYTES + ATTRIBUTE_BYTES * kept.length + 2 * bytes);
    // Copies, because a value may be a view of a buffer that it shares with others.
    const set = new Map(kept.map(([name, value]) => [name, ownCopy(value)]));
    this.#sets.set(key, set);
    return set;
  }
}

function ownCopy(bytes: Buffer): Buffer {
  const copy = Buffer.allocUnsafeSlow(bytes.length);
  bytes.copy(copy);
  return copy;
}
