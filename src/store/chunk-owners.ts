/**
 * Computes how much of each image no other image has, for ten million chunks in little memory: a table of chunk ids
 * with the owner of each, an image's number or SHARED. One pass over the manifests in any order fills it. Two ids that
 * the table takes for one change no figure visibly.
 */
import { setImmediate } from 'node:timers/promises';
import { ID_BYTES } from '../format/chunk-id.ts';
import type { ClearManifest } from '../format/manifest-clear.ts';
import { IdTable } from './id-table.ts';

const SHARED = 2 ** 32 - 1;

/** Chunks after which it yields to the event loop, about half a millisecond. */
const TURN_CHUNKS = 8192;

export class ChunkOwners {
  readonly #owners = new IdTable(32);
  readonly #uniqueBytes: number[] = [];

  /** Adds an image, and returns its number for `uniqueBytes`. Each image must be added once, however many its names. */
  async add(clear: ClearManifest): Promise<number> {
    const number = this.#uniqueBytes.push(0) - 1;
    for (let entry = 0; entry < clear.storedChunks; entry++) {
      if (entry % TURN_CHUNKS === TURN_CHUNKS - 1) await setImmediate();
      this.#take(clear, entry, number);
    }
    return number;
  }

  /** Sealed bytes of the distinct chunks that only image `number` of those added has. */
  uniqueBytes(number: number): number {
    return this.#uniqueBytes[number]!;
  }

  #take(clear: ClearManifest, entry: number, number: number): void {
    const { ids } = clear;
    const offset = entry * ID_BYTES;
    if (this.#owners.add(ids, offset, number)) {
      this.#uniqueBytes[number]! += clear.sealedBytesOf(entry);
      return;
    }
    const owner = this.#owners.flagsAt(ids, offset)!;
    if (owner === SHARED || owner === number) return;
    this.#owners.setAt(ids, offset, SHARED);
    this.#uniqueBytes[owner]! -= clear.sealedBytesOf(entry);
  }
}
