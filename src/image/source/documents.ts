/**
 * The JSON documents of an image: OCI's (image-spec 1.1: index, manifest, config), Docker's equals of them, and
 * `docker save`'s manifest.json. Each is bounded, checked field by field, and named when it is wrong.
 */
import { z } from 'zod';
import { errorText, LazydiskError } from '../../errors.ts';
import type { ImageConfig } from './image-source.ts';

/** As registries limit them. */
export const DOCUMENT_BYTES_MAX = 4 * 1024 * 1024;
export const LAYERS_MAX = 512;

const size = z.number().int().nonnegative().max(Number.MAX_SAFE_INTEGER);
const strings = z.array(z.string()).nullish();
const annotations = z.record(z.string(), z.string()).nullish();

const platform = z.object({ os: z.string(), architecture: z.string(), variant: z.string().optional() });

const descriptor = z.object({
  mediaType: z.string(),
  digest: z.string(),
  size,
  annotations,
  platform: platform.nullish(),
});
export type Descriptor = z.infer<typeof descriptor>;

export const indexDocument = z.object({
  schemaVersion: z.literal(2),
  manifests: z.array(descriptor).max(10_000),
});

export const manifestDocument = z.object({
  schemaVersion: z.literal(2),
  config: descriptor,
  layers: z.array(descriptor),
});

/** The part of an image's config that matters once it is flattened. Go writes null for what is empty. */
export const configDocument = z.object({
  architecture: z.string().default(''),
  os: z.string().default(''),
  variant: z.string().nullish(),
  config: z
    .object({
      User: z.string().nullish(),
      Env: strings,
      Entrypoint: strings,
      Cmd: strings,
      WorkingDir: z.string().nullish(),
      Labels: annotations,
    })
    .nullish(),
  rootfs: z.object({ type: z.literal('layers'), diff_ids: z.array(z.string()).nullish() }),
});

export const dockerManifestDocument = z
  .array(z.object({ Config: z.string(), RepoTags: strings, Layers: strings }))
  .min(1)
  .max(10_000);

/** `bytes` as a document of that shape. Throws CORRUPT, in which `name` says which document. */
export function parseDocument<T>(shape: z.ZodType<T>, bytes: Buffer, name: string): T {
  let json: unknown;
  try {
    json = JSON.parse(bytes.toString('utf8'));
  } catch (error) {
    throw new LazydiskError('CORRUPT', `${name} is no JSON: ${errorText(error)}`, { cause: error });
  }
  const parsed = shape.safeParse(json);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  throw new LazydiskError('CORRUPT', `${name}: ${issue?.path.join('.') || 'document'}: ${issue?.message}`);
}

export function imageConfig(document: z.infer<typeof configDocument>): ImageConfig {
  const run = document.config;
  return {
    architecture: document.architecture,
    os: document.os,
    entrypoint: run?.Entrypoint ?? [],
    cmd: run?.Cmd ?? [],
    env: run?.Env ?? [],
    user: run?.User ?? '',
    workingDir: run?.WorkingDir ?? '',
    labels: run?.Labels ?? {},
  };
}
