/**
 * The hash that orders ext4's directory indexes: a reduced MD4 over 32 bytes of the name at a time, seeded by the file
 * system (version 1, half_md4, names as unsigned bytes). Source: the kernel's
 * Documentation/filesystems/ext4/directory.rst, "Hash Tree Directories", and RFC 1320 for MD4's rounds.
 */
const HASH_EOF = 0xfffffffe;

export interface DirHash {
  /** Even; the index uses the lowest bit. */
  readonly major: number;
  readonly minor: number;
}

const rotate = (value: number, bits: number) => (value << bits) | (value >>> (32 - bits));
const choose = (x: number, y: number, z: number) => z ^ (x & (y ^ z));
const majority = (x: number, y: number, z: number) => ((x & y) + ((x ^ y) & z)) | 0;
const parity = (x: number, y: number, z: number) => x ^ y ^ z;

/** The three rounds: function, constant, order of the input words, and the four rotations that repeat. */
const ROUNDS = [
  { mix: choose, constant: 0, order: [0, 1, 2, 3, 4, 5, 6, 7], shifts: [3, 7, 11, 19] },
  { mix: majority, constant: 0x5a827999, order: [1, 3, 5, 7, 0, 2, 4, 6], shifts: [3, 5, 9, 13] },
  { mix: parity, constant: 0x6ed9eba1, order: [3, 7, 2, 6, 1, 5, 0, 4], shifts: [3, 9, 11, 15] },
] as const;

function transform(state: Int32Array, input: Int32Array): void {
  let [a, b, c, d] = state as unknown as [number, number, number, number];
  for (const { mix, constant, order, shifts } of ROUNDS) {
    for (let step = 0; step < 8; step++) {
      const sum = (a + mix(b, c, d) + input[order[step]!]! + constant) | 0;
      a = d;
      d = c;
      c = b;
      b = rotate(sum, shifts[step & 3]!);
    }
  }
  state[0] = state[0]! + a;
  state[1] = state[1]! + b;
  state[2] = state[2]! + c;
  state[3] = state[3]! + d;
}

/** Fills eight words from up to 32 bytes at `from`: four bytes a word, big-endian, padded with the remaining length. */
function fillWords(name: Uint8Array, from: number, words: Int32Array): void {
  const left = name.length - from;
  const pad = left | (left << 8) | (left << 16) | (left << 24) | 0;
  const used = Math.min(left, 32);
  words.fill(pad);
  for (let word = 0; word * 4 < used; word++) {
    let value = pad;
    for (let byte = word * 4; byte < Math.min(used, word * 4 + 4); byte++) {
      value = (name[from + byte]! + (value << 8)) | 0;
    }
    words[word] = value;
  }
}

const words = new Int32Array(8);

/** Returns the hash of a name under the file system's seed (four 32-bit words). */
export function dirHash(name: Uint8Array, seed: Int32Array): DirHash {
  const state = Int32Array.from(seed);
  for (let from = 0; from < name.length; from += 32) {
    fillWords(name, from, words);
    transform(state, words);
  }
  let major = (state[1]! & ~1) >>> 0;
  if (major === HASH_EOF) major = HASH_EOF - 2;
  return { major, minor: state[2]! >>> 0 };
}
