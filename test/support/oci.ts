/** Small images for tests: OCI layouts in a directory, in an archive, and docker archives of both forms. */
import { createHash } from 'node:crypto';
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { packTar, type TarEntrySpec } from './tar.ts';

export { packTar, type TarEntrySpec } from './tar.ts';

export interface TestImage {
  /** Base layer first: entries, or a finished tar. */
  layers: (TarEntrySpec[] | Buffer)[];
  /** Goes into the config document's `config`: Env, Entrypoint, Cmd, User, … */
  config?: Record<string, unknown>;
  /** Default gzip. */
  compression?: 'none' | 'gzip' | 'zstd';
  /** Default `latest`. */
  tag?: string;
  /** `os/arch[/variant]`; default linux on this machine's architecture. */
  platform?: string;
}

export interface MadeImage {
  manifestDigest: string;
  configDigest: string;
  /** Digests of the blobs, base first. */
  layerDigests: string[];
  diffIds: string[];
}

const MEDIA_SUFFIX = { none: '', gzip: '+gzip', zstd: '+zstd' };

/** Writes a layout that openSource opens as `oci:dir` or `oci:dir:tag`; creates the directory if needed. */
export async function makeOciLayout(dir: string, image: TestImage): Promise<MadeImage> {
  const { compression = 'gzip', tag = 'latest' } = image;
  const [os, architecture, variant] = (image.platform ?? hostPlatform()).split('/');
  await mkdir(join(dir, 'blobs/sha256'), { recursive: true });
  const diffIds: string[] = [];
  const layers: BlobDescriptor[] = [];
  for (const layer of image.layers) {
    const tar = Buffer.isBuffer(layer) ? layer : packTar(layer);
    diffIds.push(digestOf(tar));
    const mediaType = `application/vnd.oci.image.layer.v1.tar${MEDIA_SUFFIX[compression]}`;
    layers.push(await putBlob(dir, compress(tar, compression), mediaType));
  }
  const document = {
    architecture,
    os,
    ...(variant && { variant }),
    config: image.config ?? {},
    rootfs: { type: 'layers', diff_ids: diffIds },
  };
  const config = await putJson(dir, document, 'application/vnd.oci.image.config.v1+json');
  const mediaType = 'application/vnd.oci.image.manifest.v1+json';
  const manifest = await putJson(dir, { schemaVersion: 2, mediaType, config, layers }, mediaType);
  await writeFile(join(dir, 'oci-layout'), '{"imageLayoutVersion":"1.0.0"}');
  await putIndex(dir, [{ ...manifest, annotations: { 'org.opencontainers.image.ref.name': tag } }]);
  return {
    manifestDigest: manifest.digest,
    configDigest: config.digest,
    layerDigests: layers.map((layer) => layer.digest),
    diffIds,
  };
}

/** Packs the layout of `dir`: openSource opens it as `oci-archive:file`, and as a current docker-archive. */
export async function packLayout(dir: string, file: string): Promise<void> {
  const names = (await readdir(dir, { recursive: true, withFileTypes: true }))
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
    .sort();
  const entries: TarEntrySpec[] = [];
  for (const name of names) entries.push({ name: name.slice(dir.length + 1), body: await readFile(name) });
  await writeFile(file, packTar(entries));
}

/** The older form of docker-archive: manifest.json, HEX.json, and layers as plain tars. */
export async function makeDockerArchive(file: string, image: TestImage): Promise<MadeImage> {
  const [os, architecture] = (image.platform ?? hostPlatform()).split('/');
  const tars = image.layers.map((layer) => (Buffer.isBuffer(layer) ? layer : packTar(layer)));
  const diffIds = tars.map(digestOf);
  const config = Buffer.from(
    JSON.stringify({
      architecture,
      os,
      config: image.config ?? {},
      rootfs: { type: 'layers', diff_ids: diffIds },
    }),
  );
  const configDigest = digestOf(config);
  const entries: TarEntrySpec[] = [];
  const names: string[] = [];
  for (const [index, tar] of tars.entries()) {
    const name = `${String(index).padStart(64, '0')}/layer.tar`;
    const equal = diffIds.indexOf(diffIds[index]!);
    // `docker save` stores equal layers once, and links to that from the others.
    if (equal < index) entries.push({ name, type: 'symlink', target: `../${names[equal]}` });
    else entries.push({ name, body: compress(tar, image.compression ?? 'none') });
    names.push(name);
  }
  const configName = `${configDigest.slice(7)}.json`;
  entries.push({ name: configName, body: config });
  const manifest = [{ Config: configName, RepoTags: [`test:${image.tag ?? 'latest'}`], Layers: names }];
  entries.push({ name: 'manifest.json', body: JSON.stringify(manifest) });
  await mkdir(dirname(file), { recursive: true });
  await writeFile(file, packTar(entries));
  return { manifestDigest: configDigest, configDigest, layerDigests: diffIds, diffIds };
}

export interface BlobDescriptor {
  mediaType: string;
  digest: string;
  size: number;
}

/** Writes a blob and returns its descriptor. */
export async function putBlob(dir: string, bytes: Buffer, mediaType: string): Promise<BlobDescriptor> {
  const digest = digestOf(bytes);
  await writeFile(join(dir, 'blobs/sha256', digest.slice(7)), bytes);
  return { mediaType, digest, size: bytes.length };
}

export function putJson(dir: string, document: unknown, mediaType: string): Promise<BlobDescriptor> {
  return putBlob(dir, Buffer.from(JSON.stringify(document)), mediaType);
}

/** Replaces index.json. */
export async function putIndex(dir: string, manifests: unknown[]): Promise<void> {
  const mediaType = 'application/vnd.oci.image.index.v1+json';
  await writeFile(join(dir, 'index.json'), JSON.stringify({ schemaVersion: 2, mediaType, manifests }));
}

export function digestOf(bytes: Uint8Array): string {
  return `sha256:${createHash('sha256').update(bytes).digest('hex')}`;
}

export function compress(bytes: Buffer, compression: 'none' | 'gzip' | 'zstd'): Buffer {
  if (compression === 'none') return bytes;
  return compression === 'gzip' ? gzipSync(bytes) : zstdCompressSync(bytes);
}

function hostPlatform(): string {
  return `linux/${process.arch === 'x64' ? 'amd64' : process.arch}`;
}
