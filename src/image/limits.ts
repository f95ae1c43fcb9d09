/**
 * Limits on the resources that one image may use in a build. A few hundred kilobytes of layers can unpack to any number
 * of bytes, entries and names, so all of them are counted as they stream, and the first one over a limit ends the build
 * with an error that names layer and path.
 */
import { LazydiskError } from '../errors.ts';

export interface ImageLimits {
  /** Bytes that all layers together unpack to, and bytes of data chunks that they produce. */
  readonly inputBytes: number;
  /** Entries of all layers together, and names in the merged tree. */
  readonly entries: number;
  /** Memory of the merged tree by the estimate of `TreeBudget`: names, link targets, xattrs and extents included. */
  readonly treeBytes: number;
}

/** Memory of the tree that one entry may take on average; an ordinary one takes 300 to 400 bytes. */
const TREE_BYTES_PER_ENTRY = 512;

const ENTRIES_DEFAULT = 2_000_000;
/** As many as fit the heap that a build is started with. */
const ENTRIES_MAX = 8_000_000;
const INPUT_BYTES_DEFAULT = 128 * 2 ** 30;

/** Returns the default limits, or those given. Throws USAGE for more entries than the largest heap can hold. */
export function imageLimits(options: { inputBytes?: number; entries?: number } = {}): ImageLimits {
  const { inputBytes = INPUT_BYTES_DEFAULT, entries = ENTRIES_DEFAULT } = options;
  if (entries > ENTRIES_MAX) {
    throw new LazydiskError('USAGE', `--max-entries ${entries}: the maximum is ${ENTRIES_MAX}`);
  }
  return { inputBytes, entries, treeBytes: entries * TREE_BYTES_PER_ENTRY };
}

/**
 * Estimates the memory that a tree takes. Its unit costs are measured growth of V8's heap, and the same on every
 * machine, so that an image is refused on all machines or none.
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
    const text = `names, link targets, extended attributes and extents need more than ${this.#limitBytes} bytes of memory`;
    throw new LazydiskError('UNSUPPORTED', `${text} (--max-entries allows more)`);
  }

  give(bytes: number): void {
    this.#usedBytes -= bytes;
  }
}
