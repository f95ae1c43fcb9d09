/**
 * Gives a manifest to another tenant of its dedup domain (FORMAT.md, "Manifests"), at the price of one small object: no
 * chunk is touched and the digest does not change. To rewrap is to wrap the data key anew; everything but its 76 bytes
 * stays as it is. To reseal is to seal the body under a new data key, too, so that whoever knows the old one opens, and
 * forges, nothing of the new manifest.
 */
import { LazydiskError } from '../errors.ts';
import { digestBytes } from './image-digest.ts';
import type { TenantKey } from './keys.ts';
import { Manifest } from './manifest.ts';
import type { ClearManifest } from './manifest-clear.ts';
import { SEAL } from './manifest-layout.ts';
import { sealedPart } from './manifest-seal.ts';

/**
 * The manifest in `bytes`, which `from` opens, as `to` opens it. `bytes` stays as it is. Throws KEY, CORRUPT and
 * UNSUPPORTED as `Manifest.open` does; USAGE for a key of another domain: whoever builds with it would not share
 * chunks with this image, and the manifest would say that they do.
 */
export function rewrapManifest(bytes: Buffer, from: TenantKey, to: TenantKey): Buffer {
  // All of it is opened, so that what is corrupt is refused here and not handed on under a new key.
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

/** Whether two manifests of one image are sealed under one data key: then they differ in its wrapping alone. */
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
    `image ${digest} is of dedup domain ${domain}, and key ${to.id} of ${to.domain}${same}; ` +
      '`lazydisk key new --sharing` makes a key that joins a domain',
  );
}
