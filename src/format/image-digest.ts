/** The name of an image: SHA-256 of its manifest's clear part, whichever keys its manifests are sealed for. */

/** `sha256:` and 64 lower-case hex digits. */
export type ImageDigest = `sha256:${string}`;

const DIGEST = /^sha256:[0-9a-f]{64}$/;

/** Whether `text` is an image digest. */
export function isDigest(text: string): text is ImageDigest {
  return DIGEST.test(text);
}

/** The 32 bytes of a digest, as the sealed part is bound to it. */
export function digestBytes(digest: ImageDigest): Buffer {
  return Buffer.from(digest.slice('sha256:'.length), 'hex');
}
