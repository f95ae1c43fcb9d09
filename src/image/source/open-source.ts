/**
 * Where an image comes from: an OCI layout in a directory or an archive, or what `docker save` writes. A source
 * resolves the image once (index, platform, manifest, config: all checked against their digests) and then gives
 * its layers as streams of plain tar, each checked against its digests as it flows.
 */
import { LazydiskError } from '../../errors.ts';
import { openArchiveFiles } from './archive-files.ts';
import { openDirectoryFiles } from './directory-files.ts';
import { openDockerArchive } from './docker-archive.ts';
import type { ImageSource } from './image-source.ts';
import { openOciLayout } from './oci-layout.ts';
import { parsePlatform } from './platform.ts';

/**
 * Opens `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]` or `docker-archive:FILE[:NAME:TAG]`. `platform` is
 * `os/arch[/variant]`, by default this machine's. Throws USAGE, NOT_FOUND, CORRUPT, UNSUPPORTED, UNAVAILABLE.
 */
export async function openSource(spec: string, options: { platform?: string } = {}): Promise<ImageSource> {
  const platform = parsePlatform(options.platform);
  const [, name, rest] = /^([a-z-]+):(.+)$/s.exec(spec) ?? [];
  const transport = TRANSPORTS.get(name ?? '');
  if (!transport || !rest) {
    throw new LazydiskError(
      'USAGE',
      `image source ${JSON.stringify(spec)}: want oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:NAME:TAG]`,
    );
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

/** The path ends at its first colon, as skopeo and umoci have it; the rest is the tag. */
function splitTag(rest: string): { path: string; tag: string | undefined } {
  const colon = rest.indexOf(':');
  const path = colon === -1 ? rest : rest.slice(0, colon);
  const tag = colon === -1 ? undefined : rest.slice(colon + 1);
  if (path === '' || tag === '')
    throw new LazydiskError('USAGE', `image source: no path or no tag in ${JSON.stringify(rest)}`);
  return { path, tag };
}
