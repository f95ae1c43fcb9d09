/**
 * The JSON documents of an image: OCI's (image-spec 1.1: index, manifest, config), Docker's equivalents, and `docker
 * save`'s manifest.json. Each is bounded and checked field by field, and errors name it.
 */
import { errorText, LazydiskError } from '../../errors.ts';
import {
  checked,
  count,
  list,
  nullish,
  oneOf,
  openObject,
  optional,
  record,
  type Shape,
  type TypeOf,
  text,
} from '../../shape.ts';
import type { ImageConfig } from './image-source.ts';

/** The limits of registries. */
export const DOCUMENT_BYTES_MAX = 4 * 1024 * 1024;
export const LAYERS_MAX = 512;

const strings = nullish(list(text()));
const annotations = nullish(record(text()));

export interface Descriptor {
  readonly mediaType: string;
  readonly digest: string;
  readonly size: number;
  readonly annotations?: Readonly<Record<string, string>> | null | undefined;
  readonly platform?:
    | {
        readonly os: string;
        readonly architecture: string;
        readonly variant?: string | undefined;
      }
    | null
    | undefined;
}

const descriptor = openObject<Descriptor>({
  mediaType: text(),
  digest: text(),
  size: count,
  annotations,
  platform: nullish(openObject({ os: text(), architecture: text(), variant: optional(text()) })),
});

export const indexDocument = openObject({
  schemaVersion: oneOf(2),
  manifests: list(descriptor, { max: 10_000 }),
});

export const manifestDocument = openObject({
  schemaVersion: oneOf(2),
  config: descriptor,
  layers: list(descriptor),
});

/** The part of an image's config that matters once it is flattened. Go writes null for empty fields. */
export const configDocument = openObject({
  architecture: optional(text()),
  os: optional(text()),
  variant: nullish(text()),
  config: nullish(
    openObject({
      User: nullish(text()),
      Env: strings,
      Entrypoint: strings,
      Cmd: strings,
      WorkingDir: nullish(text()),
      Labels: annotations,
    }),
  ),
  rootfs: openObject({ type: oneOf('layers'), diff_ids: strings }),
});

export const dockerManifestDocument = list(
  openObject({ Config: text(), RepoTags: strings, Layers: strings }),
  { min: 1, max: 10_000 },
);

/** Parses `bytes` as a document of that shape. Throws CORRUPT with `name`, the name of the document. */
export function parseDocument<T>(shape: Shape<T>, bytes: Buffer, name: string): T {
  let json: unknown;
  try {
    json = JSON.parse(bytes.toString('utf8'));
  } catch (error) {
    throw new LazydiskError('CORRUPT', `${name} is not JSON: ${errorText(error)}`, { cause: error });
  }
  return checked(shape, json, { code: 'CORRUPT', name });
}

export function imageConfig(document: TypeOf<typeof configDocument>): ImageConfig {
  const run = document.config;
  return {
    architecture: document.architecture ?? '',
    os: document.os ?? '',
    entrypoint: run?.Entrypoint ?? [],
    cmd: run?.Cmd ?? [],
    env: run?.Env ?? [],
    user: run?.User ?? '',
    workingDir: run?.WorkingDir ?? '',
    labels: run?.Labels ?? {},
  };
}
