/** `lazydisk diff A B` */
import { Command } from 'commander';
import type { DiffSide, ImageDiff } from '../image/image-diff.ts';
import type { Share } from '../store/share-tree.ts';
import { formatShare, formatSize } from '../units.ts';
import {
  answer,
  interruptible,
  type JsonOptions,
  type StoreOptions,
  usingKeys,
  withJson,
  withStore,
} from './context.ts';
import { list, table } from './table.ts';

/** Paths shown for each image without --all. */
const PATHS_MAX = 40;

interface DiffCommandOptions extends JsonOptions, StoreOptions {
  readonly all?: boolean;
}

export function diffCommand(): Command {
  return withJson(withStore(new Command('diff')), 'diff')
    .description('compare two images of a store: what they share, and which paths take what they do not')
    .argument('<a>', 'NAME[:TAG] or sha256:…')
    .argument('<b>', 'NAME[:TAG] or sha256:…')
    .option('--all', `all paths, not only the ${PATHS_MAX} of each image that take the most`)
    .addHelpText(
      'after',
      `
Chunks and bytes need no key; paths need --key, and then both images must open with it. Sizes are of sealed chunks, as
stored. Only the chunks that hold the file system's own data are read. The bytes of a chunk are divided among the files in
it, so a file that is equal in both images may be listed: it lies in one chunk with another that is not.
Without a key "content" is null.`,
    )
    .action(diff);
}

async function diff(a: string, b: string, options: DiffCommandOptions): Promise<void> {
  const { diffImages } = await import('../image/image-diff.ts');
  const pathsMax = options.all ? Number.POSITIVE_INFINITY : PATHS_MAX;
  const found = await interruptible((signal) =>
    usingKeys(options, (store, keys) => diffImages(store, a, b, { keys, pathsMax, signal })),
  );
  answer(options, found, describe);
}

function describe({ a, b, shared, obstacles }: ImageDiff): string {
  const ofAll = (side: DiffSide) => formatShare(shareOf(shared, side.stored));
  const lines: [string, string | string[]][] = [
    ['shared', `${sizeOf(shared)}: ${ofAll(a)} of ${a.name}, ${ofAll(b)} of ${b.name}`],
    [`only ${a.name}`, `${sizeOf(a.unique)} of ${sizeOf(a.stored)}`],
    [`only ${b.name}`, `${sizeOf(b.unique)} of ${sizeOf(b.stored)}`],
  ];
  if (obstacles.length > 0) lines.push(['they differ in', [...obstacles]]);
  return `${list(lines)}${describeSide(a)}${describeSide(b)}${a.content ? '' : 'Which paths these are is sealed: give --key to see it.\n'}`;
}

function shareOf(part: Share, whole: Share): number {
  return whole.sealedBytes === 0 ? 0 : part.sealedBytes / whole.sealedBytes;
}

function describeSide({ name, content }: DiffSide): string {
  if (!content) return '';
  const { paths, metadata, more, unreadable } = content;
  const rows = [
    ...metadata.map(({ use, chunks, sealedBytes }) => [
      formatSize(sealedBytes),
      `${chunks}`,
      `(metadata: ${use})`,
    ]),
    ...paths.map(({ path, chunks, sealedBytes }) => [formatSize(sealedBytes), `${chunks}`, path]),
  ];
  if (rows.length === 0) return '';
  const rest =
    more.paths > 0 ? `… and ${more.paths} more, ${formatSize(more.sealedBytes)} together: --all\n` : '';
  const lost = unreadable > 0 ? `${unreadable} directories cannot be read\n` : '';
  const columns = [
    { title: 'bytes', align: 'right' as const },
    { title: 'chunks', align: 'right' as const },
    { title: 'path' },
  ];
  return `\nOnly ${name}:\n${table(columns, rows)}${rest}${lost}`;
}

function sizeOf({ chunks, sealedBytes }: Share): string {
  return `${formatSize(sealedBytes)} in ${chunks} chunks`;
}
