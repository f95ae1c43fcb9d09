/**
 * Image names as people write them, `name[:tag]`, tag `latest` by default, and the file names that store references. A
 * name that passes these checks is short and plain enough for a path, a URL and an object key.
 */
import { LazydiskError } from '../errors.ts';

const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]*(?:\/[A-Za-z0-9][A-Za-z0-9._-]*){0,7}$/;
const TAG = /^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$/;

/** Encoded, a name of this length with seven slashes and a tag is still a file name of at most 255 bytes. */
const NAME_LENGTH_MAX = 128;
const FILE_SUFFIX = '.json';

/** The full form of a name, `name:tag`. Throws USAGE. */
export function referenceName(text: string): string {
  const colon = text.lastIndexOf(':');
  const name = colon === -1 ? text : text.slice(0, colon);
  const tag = colon === -1 ? 'latest' : text.slice(colon + 1);
  // `sha256:…` is how a digest starts; as a name it would only confuse.
  if (!NAME.test(name) || name.length > NAME_LENGTH_MAX || !TAG.test(tag) || name === 'sha256') {
    throw new LazydiskError(
      'USAGE',
      `image name ${JSON.stringify(text.slice(0, 300))}: want NAME[:TAG] of letters, digits, ".", "_", "-", and "/" between parts of NAME`,
    );
  }
  return `${name}:${tag}`;
}

/** The file name of a full name's reference. */
export function referenceFile(fullName: string): string {
  return `${encodeURIComponent(fullName)}${FILE_SUFFIX}`;
}

/** The full name whose reference is in `file`, or undefined if that is not a reference file. */
export function nameOfReferenceFile(file: string): string | undefined {
  if (!file.endsWith(FILE_SUFFIX)) return undefined;
  try {
    const name = decodeURIComponent(file.slice(0, -FILE_SUFFIX.length));
    return referenceFile(referenceName(name)) === file ? name : undefined;
  } catch {
    return undefined;
  }
}
