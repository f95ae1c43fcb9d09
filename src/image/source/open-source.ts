/**
 * Opens the source of an image: a registry, an OCI layout in a directory or an archive, or an archive of `docker save`.
 * A source resolves the image once (index, platform, manifest, config, all checked against their digests) and then
 * provides its layers as streams of plain tar, each checked against its digests as it streams.
 */
import { LazydiskError } from '../../errors.ts';
import { openArchiveFiles } from './archive-files.ts';
import { openDirectoryFiles } from './directory-files.ts';
import { openDockerArchive } from './docker-archive.ts';
import type { ImageSource } from './image-source.ts';
import { openOciLayout } from './oci-layout.ts';
import { parsePlatform } from './platform.ts';
import type { RegistryOptions } from './registry/open.ts';

export interface SourceOptions {
  /** `os/arch[/variant]`; default: this machine's. */
  readonly platform?: string;
  readonly registry?: RegistryOptions;
}

/**
 * Opens `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]`, `docker-archive:FILE[:NAME:TAG]`, or the name of an image in a
 * registry, with or without the prefix `docker://`. Throws USAGE, NOT_FOUND, CORRUPT, UNSUPPORTED, UNAVAILABLE; for a
 * registry also OVERLOAD, TIMEOUT, ABORTED, KEY.
 */
export async function openSource(spec: string, options: SourceOptions = {}): Promise<ImageSource> {
  const platform = parsePlatform(options.platform);
  const [, name = '', rest] = /^([a-z-]+):(.+)$/s.exec(spec) ?? [];
  const transport = TRANSPORTS.get(name);
  if (!transport || !rest) {
    const { openRegistry } = await import('./registry/open.ts');
    return await openRegistry(spec, platform, options.registry);
  }
  const { path, tag } = splitTag(rest);
  const files = await transport.files(path);
  try {
    return await transport.open(spec, files, tag, platform);
  } catch (error) {
    await files.close();
    throw error;
  }
}

const TRANSPORTS = new Map([
  ['oci', { files: openDirectoryFiles, open: openOciLayout }],
  ['oci-archive', { files: openArchiveFiles, open: openOciLayout }],
  ['docker-archive', { files: openArchiveFiles, open: openDockerArchive }],
]);

/** The path ends at its first colon, as in skopeo and umoci; the rest is the tag. */
function splitTag(rest: string): { path: string; tag: string | undefined } {
  const colon = rest.indexOf(':');
  const path = colon === -1 ? rest : rest.slice(0, colon);
  const tag = colon === -1 ? undefined : rest.slice(colon + 1);
  if (path === '' || tag === '')
    throw new LazydiskError('USAGE', `image source: empty path or tag in ${JSON.stringify(rest)}`);
  return { path, tag };
}
