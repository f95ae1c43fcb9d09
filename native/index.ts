/**
 * Loads the compiled addon and types its functions. LAZYDISK_NATIVE names another build of it (the AddressSanitizer
 * one). If there is no build, the error names the command that makes one.
 */
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { errorText, LazydiskError } from '../src/errors.ts';
import type { NativeAddon } from './native.d.ts';

/** Results of `openChunk`. */
export const OPEN_OK = 0;
/** The SHA-256 of the sealed bytes is not the id. */
export const OPEN_WRONG_ID = 1;
/** The tag does not verify: the key is wrong, although the bytes match the id. */
export const OPEN_WRONG_TAG = 2;
/** Unknown codec, corrupt zstd data, or a length other than the target's. */
export const OPEN_BAD_PAYLOAD = 3;

/** The compressions of `decoderOpen`. */
export const DECODER_COMPRESSIONS = { none: 0, gzip: 1, zstd: 2 } as const;
/** Results of `decoderRun`. */
export const DECODED = 0;
export const DECODE_CORRUPT = 1;

function load(): NativeAddon {
  const path = process.env.LAZYDISK_NATIVE ?? join(import.meta.dirname, 'build', 'lazydisk.node');
  try {
    return createRequire(import.meta.url)(path) as NativeAddon;
  } catch (cause) {
    const text = `the native addon ${path} does not load: run "npm run build:native" (${errorText(cause)})`;
    throw new LazydiskError('UNAVAILABLE', text, { cause });
  }
}

const addon = load();

export const {
  openChunk,
  sealChunk,
  sha256,
  decoderOpen,
  decoderRun,
  decoderEnd,
  fuseMount,
  fuseUnmount,
  socketPair,
  receiveFd,
  socketSend,
  lockFile,
  datagramSend,
  fuseOpen,
  fuseReply,
  fusePush,
  fusePushed,
  fuseClose,
  residencyOpen,
  residencyClaim,
  residencyTakeUsed,
  residencyReads,
  hitMapOpen,
  hitMapPublish,
  hitMapCounts,
  nbdOpen,
  nbdClose,
  nbdServe,
  nbdWrite,
  nbdPause,
  nbdEnd,
  nbdCounts,
} = addon;
export type { FuseChannel, HitMapHandle, LayerDecoder, NbdLoop, Residency } from './native.d.ts';
// Declared in full, as TypeScript requires for a function that never returns.
export const exitNow: NativeAddon['exitNow'] = addon.exitNow;
export const erasureEncode: NativeAddon['erasureEncode'] = addon.erasureEncode;
export const erasureReconstruct: NativeAddon['erasureReconstruct'] = addon.erasureReconstruct;
export const erasureRow: NativeAddon['erasureRow'] = addon.erasureRow;
