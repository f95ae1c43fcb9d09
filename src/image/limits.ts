/**
 * What one image may cost a build. A few hundred kilobytes of layers can unpack to any number of bytes, entries and
 * names, so all of them are counted while they stream past, and the first beyond a limit ends the build with an error
 * that names layer and path.
 */
import { LazydiskError } from '../errors.ts';

export interface ImageLimits {
  /** Bytes that all layers unpack to together, and bytes of data chunks that they come to. */
  readonly inputBytes: number;
  /** Entries of all layers together, and names in the merged tree. */
  readonly entries: number;
  /** Memory of the merged tree by the estimate of `TreeBudget`: names, link targets, xattrs and extents included. */
  readonly treeBytes: number;
}

/** Memory of the tree that one entry may take on average; an ordinary one takes 300 to 400 bytes. */
const TREE_BYTES_PER_ENTRY = 512;

const ENTRIES_DEFAULT = 2_000_000;
/** What the heap that a build is started with holds. */
const ENTRIES_MAX = 8_000_000;
const INPUT_BYTES_DEFAULT = 128 * 2 ** 30;

/** The default limits, or those given. Throws USAGE for more entries than the heap is ever given memory for. */
export function imageLimits(options: { inputBytes?: number; entries?: number } = {}): ImageLimits {
  const { inputBytes = INPUT_BYTES_DEFAULT, entries = ENTRIES_DEFAULT } = options;
  if (entries > ENTRIES_MAX) {
    throw new LazydiskError('USAGE', `--max-entries ${entries}: ${ENTRIES_MAX} is the most`);
  }
  return { inputBytes, entries, treeBytes: entries * TREE_BYTES_PER_ENTRY };
}

/**
 * Counts the memory that a tree takes. Its unit costs are what V8's heap was measured to grow by; they are the same on
 * every machine, so that an image is refused everywhere or nowhere.
 */
export class TreeBudget {
  readonly #limitBytes: number;
  #usedBytes = 0;

  constructor(limitBytes: number) {
    this.#limitBytes = limitBytes;
  }

  /** Throws UNSUPPORTED when the tree has become too large. */
  take(bytes: number): void {
    this.#usedBytes += bytes;
    if (this.#usedBytes <= this.#limitBytes) return;
    const text = `names, link targets, extended attributes and extents of over ${this.#limitBytes} bytes of memory`;
    throw new LazydiskError('UNSUPPORTED', `${text} (--max-entries allows more)`);
  }

  give(bytes: number): void {
    this.#usedBytes -= bytes;
  }
}
