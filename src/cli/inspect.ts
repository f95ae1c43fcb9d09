/** `lazydisk inspect IMAGE` */
import { Command } from 'commander';
import { LazydiskError } from '../errors.ts';
import type { ImageDetail } from '../store/image-info.ts';
import { formatSize } from '../units.ts';
import {
  answer,
  clientOf,
  interruptible,
  type JsonOptions,
  type RunDirOptions,
  requireKeys,
  type StoreOptions,
  usingKeys,
  withJson,
  withRunDir,
  withStore,
} from './context.ts';
import { list } from './table.ts';

/** Paths without --all. */
const PATHS_MAX = 200;

interface InspectOptions extends JsonOptions, RunDirOptions, StoreOptions {
  /** True for all paths. */
  readonly paths?: string | true;
  readonly all?: boolean;
}

export function inspectCommand(): Command {
  return withJson(withRunDir(withStore(new Command('inspect'))), 'inspect')
    .description('show what an image is: its disk, its layers, its entrypoint and environment')
    .argument('<image>', 'NAME[:TAG] or sha256:…')
    .option('--paths [glob]', 'which path, of those that match, lies in which chunks')
    .option('--all', `with --paths: all of them, not only the first ${PATHS_MAX}`)
    .addHelpText(
      'after',
      `
Reads the store that --store names; without --store it asks the daemon. Everything but the digest is sealed, so
without a key "content" is null.
--paths needs --store and --key, and reads only the chunks that hold the file system's own data. In a pattern, * and ? are
anything but a slash, and ** also slashes; one that does not begin with a slash matches at any depth. Files without data in
chunks have none. In JSON it is the second of the forms; "metadata" are chunks that hold anything but data of files.`,
    )
    .action(inspect);
}

async function inspect(image: string, options: InspectOptions): Promise<void> {
  if (options.paths === undefined) {
    if (options.all) throw new LazydiskError('USAGE', 'inspect: --all is of use with --paths');
    answer(options, await findImage(image, options), describe);
  } else {
    const isAll = options.paths === true;
    const { describePaths } = await import('./path-chunks.ts');
    answer(options, await findPaths(image, options.paths, options), (found) => describePaths(found, isAll));
  }
}

async function findPaths(image: string, glob: string | true, options: InspectOptions) {
  const [{ loadImage }, { chunkPaths }] = await Promise.all([
    import('../store/image.ts'),
    import('../image/chunk-paths.ts'),
  ]);
  return interruptible((signal) =>
    usingKeys(options, async (store, keys) => {
      const found = await loadImage(store, image, requireKeys(keys));
      const pathsMax = options.all ? Number.POSITIVE_INFINITY : PATHS_MAX;
      const wanted = { pathsMax, signal, ...(glob !== true && { glob }) };
      return { name: found.name, digest: found.digest, ...(await chunkPaths(store, found, wanted)) };
    }),
  );
}

async function findImage(image: string, options: InspectOptions): Promise<ImageDetail> {
  if (!options.store) return (await clientOf(options)).inspect(image);
  const { describeImage } = await import('../store/image-info.ts');
  return usingKeys(options, (store, keys) => describeImage(store, image, keys));
}

function describe(image: ImageDetail): string {
  const head: [string, string][] = [
    ['name', image.name],
    ['digest', image.digest],
    ['built', image.updated ?? '–'],
  ];
  const { content } = image;
  if (!content) return `${list(head)}What it holds is sealed: give --key to see it.\n`;
  const { config } = content;
  return list([
    ...head,
    ['disk', formatSize(content.sizeBytes)],
    ['stored', `${formatSize(content.storedBytes)} in ${content.storedChunks} chunks`],
    ['made by', `${content.writer}, ${content.encoder}`],
    ['domain', `${content.domain}, epoch ${content.saltEpoch}`],
    ['source', content.source],
    ['platform', `${content.os}/${content.architecture}`],
    [
      'layers',
      content.layers.map(
        (layer) => `${layer.digest}  ${formatSize(layer.sizeBytes)}, ${layer.chunks} chunks`,
      ),
    ],
    ['entrypoint', config.entrypoint.length > 0 ? JSON.stringify(config.entrypoint) : '–'],
    ['command', config.cmd.length > 0 ? JSON.stringify(config.cmd) : '–'],
    ['environment', config.env],
    ['user', config.user || '–'],
    ['directory', config.workingDir || '–'],
    ['labels', Object.entries(config.labels).map(([name, value]) => `${name}=${value}`)],
  ]);
}
