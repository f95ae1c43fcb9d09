/** Names of drives: each is both a file name and an NBD export name. */
import { LazydiskError } from '../errors.ts';

const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;

/** Returns `name` if it is valid for a drive. Throws USAGE. */
export function checkDriveName(name: string): string {
  if (NAME.test(name)) return name;
  throw new LazydiskError('USAGE', `drive name ${JSON.stringify(name)}: want ${NAME.source}`);
}

/**
 * The default name of a drive for an image: `debian:12` → `debian-12`, `team/app` → `team-app`, a digest → its first 12
 * digits.
 */
export function driveNameFor(image: string): string {
  const digest = /^sha256:([0-9a-f]{12})/.exec(image);
  if (digest) return digest[1]!;
  return image.replace(/[/:]/g, '-').slice(0, 128);
}
