/**
 * Gives a manifest to another tenant of its dedup domain (FORMAT.md, "Manifests"), for the cost of one small object: no
 * chunk is touched and the digest does not change. Rewrapping wraps the same data key again and changes only its 76
 * bytes. Resealing also seals the body under a new data key, so that whoever knows the old one can neither read nor
 * forge the new manifest.
 */
import { LazydiskError } from '../errors.ts';
import { digestBytes } from './image-digest.ts';
import type { TenantKey } from './keys.ts';
import { Manifest } from './manifest.ts';
import type { ClearManifest } from './manifest-clear.ts';
import { SEAL } from './manifest-layout.ts';
import { sealedPart } from './manifest-seal.ts';

/**
 * Returns the manifest in `bytes`, which `from` opens, rewrapped for `to`. `bytes` is not changed. Throws KEY, CORRUPT
 * and UNSUPPORTED as `Manifest.open` does; USAGE for a key of another domain: builds with it would not share chunks
 * with this image, although the manifest would say so.
 */
export function rewrapManifest(bytes: Buffer, from: TenantKey, to: TenantKey): Buffer {
  // The whole manifest is opened, so that a corrupt one is refused here and not passed on under a new key.
  const { clear, dataKey } = Manifest.openSealed(bytes, from);
  checkDomain(clear, from, to);
  const header = clear.clearBytes;
  const rewrapped = Buffer.from(bytes);
  rewrapped.write(to.id, header + SEAL.keyId, 'latin1');
  to.wrap(dataKey, digestBytes(clear.digest)).copy(rewrapped, header + SEAL.wrappedKey);
  dataKey.fill(0);
  return rewrapped;
}

/** The same under a new data key. `from` and `to` may be one key. Throws as `rewrapManifest` does. */
export function resealManifest(bytes: Buffer, from: TenantKey, to: TenantKey): Buffer {
  const { clear, body, dataKey } = Manifest.openSealed(bytes, from);
  dataKey.fill(0);
  checkDomain(clear, from, to);
  return Buffer.concat([bytes.subarray(0, clear.clearBytes), ...sealedPart(clear.digest, to, [body])]);
}

/** Whether two manifests of one image are sealed under one data key, and so differ only in its wrapping. */
export function shareDataKey(a: Buffer, b: Buffer): boolean {
  const [bodyA, bodyB] = [a, b].map((bytes) =>
    bytes.subarray(Manifest.readClear(bytes).clearBytes + SEAL.bodyBytes),
  );
  return bodyA!.equals(bodyB!);
}

function checkDomain({ domain, digest }: ClearManifest, from: TenantKey, to: TenantKey): void {
  if (domain === to.domain && from.sharesDomain(to)) return;
  const same = domain === to.domain ? ', of the same name but with another secret' : '';
  throw new LazydiskError(
    'USAGE',
    `image ${digest} is of dedup domain ${domain}, but key ${to.id} is of ${to.domain}${same}; ` +
      '`lazydisk key new --sharing` makes a key that joins a domain',
  );
}
