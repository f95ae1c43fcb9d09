/** An image in an OCI layout: index.json names it, its blobs are files. Spec: OCI image-spec 1.1, "Image Layout". */
import { LazydiskError } from '../../errors.ts';
import { type Descriptor, DOCUMENT_BYTES_MAX, indexDocument, parseDocument } from './documents.ts';
import { readBlob, readWhole, type SourceFiles } from './files.ts';
import { type ImageBlobs, type LayerReader, openImage } from './image-manifest.ts';
import type { ImageSource } from './image-source.ts';
import type { Platform } from './platform.ts';

/** The source closes `files` when it is closed; if this throws, the caller must. */
export async function openOciLayout(
  description: string,
  files: SourceFiles,
  tag: string | undefined,
  wanted: Platform,
): Promise<ImageSource> {
  const bytes = await readWhole(files, 'index.json', DOCUMENT_BYTES_MAX);
  if (!bytes)
    throw new LazydiskError('NOT_FOUND', `${files.description} is not an OCI layout: it has no index.json`);
  const index = parseDocument(indexDocument, bytes, `${files.description}: index.json`);
  const named = byTag(index.manifests, tag, files.description);
  return await openImage(description, new LayoutBlobs(files), named, wanted);
}

/** The images in index.json that the tag names; without a tag, all of them if they share one name. */
function byTag(manifests: readonly Descriptor[], tag: string | undefined, where: string): Descriptor[] {
  const names = (one: Descriptor) =>
    ['org.opencontainers.image.ref.name', 'io.containerd.image.name']
      .map((key) => one.annotations?.[key])
      .filter((name) => name !== undefined);
  const known = [...new Set(manifests.flatMap((one) => names(one)[0] ?? []))];
  if (tag === undefined) {
    if (known.length <= 1) return [...manifests];
    throw new LazydiskError(
      'USAGE',
      `${where} holds several images; name one of: ${known.slice(0, 20).join(', ')}`,
    );
  }
  const found = manifests.filter((one) => names(one).some((name) => sameName(name, tag)));
  if (found.length > 0) return found;
  throw new LazydiskError(
    'NOT_FOUND',
    `${where} has no image named ${JSON.stringify(tag)}; it has: ${known.slice(0, 20).join(', ') || 'one without a name'}`,
  );
}

/** Docker's short names: `debian` is `docker.io/library/debian:latest`. */
export function sameName(name: string, asked: string): boolean {
  const full = (short: string) => {
    const tagged = /:[^/]+$|@/.test(short) ? short : `${short}:latest`;
    return tagged.replace(/^docker\.io\//, '').replace(/^library\//, '');
  };
  return name === asked || full(name) === full(asked);
}

/** The blobs of a layout, each a file named by its digest. */
class LayoutBlobs implements ImageBlobs {
  readonly description: string;
  readonly #files: SourceFiles;

  constructor(files: SourceFiles) {
    this.description = files.description;
    this.#files = files;
  }

  async document({ digest }: Descriptor): Promise<Buffer> {
    const bytes = await readWhole(this.#files, blobName(digest), DOCUMENT_BYTES_MAX);
    if (bytes) return bytes;
    throw new LazydiskError('NOT_FOUND', `blob ${digest} is missing in ${this.description}`);
  }

  layers(descriptors: readonly Descriptor[]): LayerReader[] {
    return descriptors.map(
      ({ digest, size }) =>
        () =>
          readBlob(this.#files, { name: blobName(digest), digest, sizeBytes: size }),
    );
  }

  close(): Promise<void> {
    return this.#files.close();
  }
}

/** The file name of a blob in a layout. `digest` matches DIGEST, so the name cannot lead outside. */
function blobName(digest: string): string {
  return `blobs/${digest.slice(0, 6)}/${digest.slice(7)}`;
}
