/**
 * An image in a registry: the manifest or index of its name, read over the OCI distribution protocol, and its blobs,
 * streamed. Spec: OCI distribution-spec 1.1, "Pull".
 */
import { readFile } from 'node:fs/promises';
import tls from 'node:tls';
import type { Patience } from '../../../async/patience.ts';
import { errorText, LazydiskError } from '../../../errors.ts';
import type { Descriptor } from '../documents.ts';
import { type ImageBlobs, type LayerReader, openImage } from '../image-manifest.ts';
import type { ImageSource, LayerBlob } from '../image-source.ts';
import type { Platform } from '../platform.ts';
import { namedError } from './answer-error.ts';
import { BlobDownload } from './blob-download.ts';
import { type EndpointOptions, endpointsOf } from './endpoint.ts';
import { type NamedManifest, readDocument, readNamedManifest } from './manifest.ts';
import { ReadAhead } from './read-ahead.ts';
import { parseReference } from './reference.ts';
import { Repository } from './repository.ts';

export interface RegistryOptions extends EndpointOptions {
  /** A file of certificates in PEM: authorities to trust in addition to those that Node trusts. */
  readonly caFile?: string;
  /** How long to wait for a registry that does not respond; default: a few tries. */
  readonly patience?: Patience;
}

/**
 * Opens `[docker://][HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]`. Throws USAGE, NOT_FOUND, CORRUPT, UNSUPPORTED, OVERLOAD,
 * UNAVAILABLE, TIMEOUT, ABORTED, KEY for login files that cannot be read.
 */
export async function openRegistry(
  spec: string,
  wanted: Platform,
  options: RegistryOptions = {},
): Promise<ImageSource> {
  const { caFile, patience } = options;
  const reference = parseReference(spec);
  const repository = new Repository({
    endpoints: endpointsOf(reference, options),
    ca: caFile === undefined ? undefined : await readAuthorities(caFile),
    patience,
    environment: process.env,
  });
  try {
    const root = await readNamedManifest(repository, reference.version);
    const image = await openImage(spec, new RegistryBlobs(repository, root), [root.descriptor], wanted);
    return { ...image, layers: image.layers.map((layer) => named(repository, layer)) };
  } catch (error) {
    const name = repository.name;
    repository.close();
    throw namedError(name, '', error);
  }
}

/** The same layer, with errors that name the repository. */
function named(repository: Repository, layer: LayerBlob): LayerBlob {
  return {
    ...layer,
    async *open(signal, onInput) {
      try {
        yield* layer.open(signal, onInput);
      } catch (error) {
        throw namedError(repository.name, '', error);
      }
    },
  };
}

class RegistryBlobs implements ImageBlobs {
  readonly description: string;
  readonly #repository: Repository;
  readonly #root: NamedManifest;
  #readAhead: ReadAhead | undefined;

  constructor(repository: Repository, root: NamedManifest) {
    this.description = repository.name;
    this.#repository = repository;
    this.#root = root;
  }

  async document(descriptor: Descriptor): Promise<Buffer> {
    const { descriptor: root, bytes } = this.#root;
    return descriptor.digest === root.digest ? bytes : await readDocument(this.#repository, descriptor);
  }

  layers(descriptors: readonly Descriptor[]): LayerReader[] {
    const layers = descriptors.map((descriptor) => ({
      sizeBytes: descriptor.size,
      download: (signal: AbortSignal) => new BlobDownload(this.#repository, descriptor, signal),
    }));
    const readAhead = new ReadAhead(layers);
    this.#readAhead = readAhead;
    return layers.map((_, index) => (signal) => readAhead.read(index, signal));
  }

  async close(): Promise<void> {
    this.#readAhead?.close();
    this.#repository.close();
  }
}

/**
 * Returns them in PEM, with those that Node trusts, because blobs may be on another host. Throws NOT_FOUND, USAGE for a
 * file without a certificate.
 */
async function readAuthorities(file: string): Promise<string> {
  const pem = await readFile(file, 'utf8').catch((error: unknown) => {
    throw new LazydiskError('NOT_FOUND', `--registry-ca: ${errorText(error)}`, { cause: error });
  });
  if (!pem.includes('-----BEGIN CERTIFICATE-----')) {
    throw new LazydiskError('USAGE', `--registry-ca: there is no PEM certificate in ${file}`);
  }
  return [...tls.getCACertificates('default'), pem].join('\n');
}
