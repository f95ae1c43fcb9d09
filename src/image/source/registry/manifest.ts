/** Manifests, indexes and configs in a registry: small documents that are read completely, bounded and verified. */
import { LazydiskError } from '../../../errors.ts';
import { type Descriptor, DOCUMENT_BYTES_MAX } from '../documents.ts';
import { checkDigest, DIGEST, hashOf } from '../layer-blob.ts';
import { isIndex, isManifest, MANIFEST_TYPES } from '../media-types.ts';
import type { Answer } from './client.ts';
import type { Repository } from './repository.ts';

/** Manifests of registries before 2016, and content types that state nothing. */
const SCHEMA_1 = /^application\/vnd\.docker\.distribution\.manifest\.v1\+/;
const UNSTATED = /^(?:|application\/json|application\/octet-stream|text\/plain)$/;

export interface NamedManifest {
  readonly descriptor: Descriptor;
  readonly bytes: Buffer;
}

/**
 * Reads the manifest or index that a tag or a digest names. Throws NOT_FOUND, CORRUPT, UNSUPPORTED, and as `ask` does.
 */
export function readNamedManifest(repository: Repository, version: string): Promise<NamedManifest> {
  const isDigest = DIGEST.test(version);
  const question = {
    what: isDigest ? `manifest ${version}` : `tag ${version}`,
    get: () => ({
      path: `manifests/${version}`,
      headers: { accept: MANIFEST_TYPES.join(', ') },
      signal: repository.signal,
    }),
    signal: repository.signal,
  };
  return repository.ask(question, async (answer) => {
    const bytes = await wholeBody(answer);
    const stated = answer.headers['docker-content-digest'] ?? '';
    const digest = isDigest ? version : DIGEST.test(stated) ? stated : `sha256:${hexOf(bytes)}`;
    checkDigest(hashOf(digest).update(bytes), digest, isDigest ? 'it' : 'its manifest');
    const mediaType = mediaTypeOf(answer.headers['content-type'] ?? '', bytes);
    return { descriptor: { mediaType, digest, size: bytes.length }, bytes };
  });
}

/** Reads the document that a descriptor names. Throws NOT_FOUND, CORRUPT, and as `ask` does. */
export function readDocument(repository: Repository, descriptor: Descriptor): Promise<Buffer> {
  const { mediaType, digest } = descriptor;
  const isAny = isManifest(mediaType) || isIndex(mediaType);
  const question = {
    what: `${isAny ? 'manifest' : 'blob'} ${digest}`,
    get: () => ({
      path: `${isAny ? 'manifests' : 'blobs'}/${digest}`,
      headers: isAny ? { accept: mediaType } : {},
      signal: repository.signal,
    }),
    signal: repository.signal,
  };
  return repository.ask(question, async (answer) => {
    const bytes = await wholeBody(answer);
    checkDigest(hashOf(digest).update(bytes), digest, 'it');
    return bytes;
  });
}

/**
 * The media type by the header and by the document itself. They must not contradict each other, otherwise the same
 * bytes would be different images to different clients.
 */
function mediaTypeOf(contentType: string, bytes: Buffer): string {
  const header = contentType.split(';', 1)[0]!.trim().toLowerCase();
  const document = jsonObject(bytes);
  const own = typeof document.mediaType === 'string' ? document.mediaType : undefined;
  if (SCHEMA_1.test(header) || document.schemaVersion === 1) {
    throw new LazydiskError(
      'UNSUPPORTED',
      'it is an image manifest of schema 1, deprecated since 2016; push the image again with a current tool',
    );
  }
  const mediaType = UNSTATED.test(header) ? own : header;
  if (!mediaType || !(isManifest(mediaType) || isIndex(mediaType))) {
    throw new LazydiskError(
      'UNSUPPORTED',
      `it is of type ${JSON.stringify(mediaType ?? header)}, not an image`,
    );
  }
  const isBoth = 'manifests' in document && ('layers' in document || 'config' in document);
  if ((own !== undefined && own !== mediaType) || isBoth) {
    throw new LazydiskError('CORRUPT', 'it is an image and something else at the same time');
  }
  return mediaType;
}

function jsonObject(bytes: Buffer): Record<string, unknown> {
  try {
    const json: unknown = JSON.parse(bytes.toString('utf8'));
    if (typeof json === 'object' && json !== null) return json as Record<string, unknown>;
  } catch {
    // Reported below.
  }
  throw new LazydiskError('CORRUPT', 'it is not a JSON object');
}

/** Throws CORRUPT for a body over DOCUMENT_BYTES_MAX. */
async function wholeBody({ body }: Answer): Promise<Buffer> {
  const parts: Buffer[] = [];
  let sizeBytes = 0;
  for await (const part of body as AsyncIterable<Buffer>) {
    sizeBytes += part.length;
    if (sizeBytes > DOCUMENT_BYTES_MAX) {
      throw new LazydiskError('CORRUPT', `it has more than ${DOCUMENT_BYTES_MAX} bytes`);
    }
    parts.push(part);
  }
  return Buffer.concat(parts);
}

function hexOf(bytes: Buffer): string {
  return hashOf('sha256:').update(bytes).digest('hex');
}
