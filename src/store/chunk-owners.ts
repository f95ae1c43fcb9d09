/**
 * How much of each image no other image has, for ten million chunks in little memory: an open-addressed table of 64-bit
 * fingerprints, the first eight bytes of each id, and whose it is, an image's number or nobody's alone. One pass over the
 * manifests in any order fills it. Two ids of one fingerprint count as one, which no figure for people shows.
 */
import { setImmediate } from 'node:timers/promises';
import { LazydiskError } from '../errors.ts';
import { ID_BYTES } from '../format/chunk-id.ts';
import type { ClearManifest } from '../format/manifest-clear.ts';

const SLOTS_MIN = 1 << 12;
const SLOTS_MAX = 2 ** 30;
const FREE = 0;
const SHARED = 2 ** 32 - 1;

/** Chunks after which others have their turn, some half a millisecond. */
const TURN_CHUNKS = 8192;

export class ChunkOwners {
  #high = new Uint32Array(SLOTS_MIN);
  #low = new Uint32Array(SLOTS_MIN);
  #owner = new Uint32Array(SLOTS_MIN);
  #size = 0;
  readonly #uniqueBytes: number[] = [];

  /** Takes an image in, and gives the number that `uniqueBytes` knows it by. Each image once, however many its names. */
  async add(clear: ClearManifest): Promise<number> {
    const number = this.#uniqueBytes.push(0) - 1;
    for (let entry = 0; entry < clear.storedChunks; entry++) {
      if (entry % TURN_CHUNKS === TURN_CHUNKS - 1) await setImmediate();
      this.#take(clear, entry, number);
    }
    return number;
  }

  /** Sealed bytes of the chunks that only image `number` of those taken in has, each once. */
  uniqueBytes(number: number): number {
    return this.#uniqueBytes[number]!;
  }

  #take(clear: ClearManifest, entry: number, number: number): void {
    const high = clear.ids.readUInt32LE(entry * ID_BYTES);
    const low = clear.ids.readUInt32LE(entry * ID_BYTES + 4);
    const slot = this.#slotOf(high, low);
    // Numbers are kept one up, since 0 is a free slot.
    const owner = this.#owner[slot]!;
    if (owner === SHARED || owner === number + 1) return;
    const sealedBytes = clear.sealedBytesOf(entry);
    if (owner !== FREE) {
      this.#owner[slot] = SHARED;
      this.#uniqueBytes[owner - 1]! -= sealedBytes;
      return;
    }
    this.#high[slot] = high;
    this.#low[slot] = low;
    this.#owner[slot] = number + 1;
    this.#uniqueBytes[number]! += sealedBytes;
    // Over two thirds full, runs of taken slots get long.
    if (++this.#size * 3 > this.#owner.length * 2) this.#grow();
  }

  /** Where the fingerprint is, or the free slot where it belongs. */
  #slotOf(high: number, low: number): number {
    const mask = this.#owner.length - 1;
    let slot = (high ^ low) & mask;
    while (this.#owner[slot] !== FREE && (this.#low[slot] !== low || this.#high[slot] !== high))
      slot = (slot + 1) & mask;
    return slot;
  }

  #grow(): void {
    const [high, low, owner] = [this.#high, this.#low, this.#owner];
    const slots = owner.length * 2;
    if (slots > SLOTS_MAX) throw new LazydiskError('NO_SPACE', `over ${this.#size} chunk ids in one table`);
    this.#high = new Uint32Array(slots);
    this.#low = new Uint32Array(slots);
    this.#owner = new Uint32Array(slots);
    for (let old = 0; old < owner.length; old++) {
      if (owner[old] === FREE) continue;
      const slot = this.#slotOf(high[old]!, low[old]!);
      this.#high[slot] = high[old]!;
      this.#low[slot] = low[old]!;
      this.#owner[slot] = owner[old]!;
    }
  }
}
