/** The name that a drive gets when nobody gives it one. */

/** `debian:12` → `debian-12`, `team/app` → `team-app`, a digest → its first 12 digits. */
export function driveNameFor(image: string): string {
  const digest = /^sha256:([0-9a-f]{12})/.exec(image);
  if (digest) return digest[1]!;
  return image.replace(/[/:]/g, '-').slice(0, 128);
}
