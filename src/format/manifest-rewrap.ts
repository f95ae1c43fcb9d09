/**
 * Gives a manifest to another tenant of its dedup domain (FORMAT.md, "Manifests"): the data key is wrapped anew, and
 * everything but its 76 bytes stays as it is. No chunk is touched and the digest does not change, so a wrapping key
 * can be rotated, or an image handed on, at the price of one small object.
 */
import { LazydiskError } from '../errors.ts';
import { type TenantKey, WRAPPED_KEY_BYTES } from './keys.ts';
import { Manifest } from './manifest.ts';
import { SEAL } from './manifest-layout.ts';

/**
 * The manifest in `bytes`, which `from` opens, as `to` opens it. `bytes` stays as it is. Throws KEY, CORRUPT and
 * UNSUPPORTED as `Manifest.open` does; USAGE for a key of another domain: whoever builds with it would not share
 * chunks with this image, and the manifest would say that they do.
 */
export function rewrapManifest(bytes: Buffer, from: TenantKey, to: TenantKey): Buffer {
  // All of it is opened, so that what is bent is refused here and not handed on under a new key.
  const { clear, digest } = Manifest.open(bytes, from);
  if (clear.domain !== to.domain || !from.sharesDomain(to)) {
    const same = clear.domain === to.domain ? ', of the same name but with another secret' : '';
    throw new LazydiskError(
      'USAGE',
      `image ${digest} is of dedup domain ${clear.domain}, and key ${to.id} of ${to.domain}${same}; ` +
        '`lazydisk key new --sharing` makes a key that joins a domain',
    );
  }
  const bound = Buffer.from(digest.slice('sha256:'.length), 'hex');
  const header = clear.clearBytes;
  const wrapped = header + SEAL.wrappedKey;
  const dataKey = from.unwrap(bytes.subarray(wrapped, wrapped + WRAPPED_KEY_BYTES), bound);
  const rewrapped = Buffer.from(bytes);
  rewrapped.write(to.id, header + SEAL.keyId, 'latin1');
  to.wrap(dataKey, bound).copy(rewrapped, wrapped);
  dataKey.fill(0);
  return rewrapped;
}
