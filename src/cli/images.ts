/** `lazydisk images` */
import { Command } from 'commander';
import { LazydiskError } from '../errors.ts';
import type { ImageInfo } from '../store/image-info.ts';
import type { PastReference } from '../store/store.ts';
import { formatDuration, formatSize } from '../units.ts';
import {
  answer,
  clientOf,
  type JsonOptions,
  type RunDirOptions,
  type StoreOptions,
  usingKeys,
  usingStore,
  withJson,
  withRunDir,
  withStore,
} from './context.ts';
import { table } from './table.ts';

interface ImagesOptions extends JsonOptions, RunDirOptions, StoreOptions {
  /** True for the history of all names. */
  readonly history?: string | true;
  readonly tree?: boolean;
}

export function imagesCommand(): Command {
  return withJson(withRunDir(withStore(new Command('images'))), 'images')
    .description('list the images of a store')
    .option('--history [name[:tag]]', 'what the name, or every name, was set to in the last 90 days and more')
    .option('--tree', 'which images share how much with which')
    .addHelpText(
      'after',
      `
Reads the store that --store names, and needs no key; with one, it says of each image whether that opens it. Without
--store it asks the daemon. "Unique" is what no other image of the list has.
--history needs --store, and in JSON is the second of the lists: oldest first, with a null digest where the name was removed.
--tree needs --store too. It puts each image below the older one that it shares the most with; "adds" is what no older image
has. In JSON it is the third of the lists.`,
    )
    .action(images);
}

async function images(options: ImagesOptions): Promise<void> {
  if (options.tree) {
    if (options.history !== undefined) throw new LazydiskError('USAGE', 'give either --tree or --history');
    if (!options.store) throw new LazydiskError('USAGE', '--tree is of a store: give --store');
    const { shareTree } = await import('../store/share-tree.ts');
    const { describeTree } = await import('./image-tree.ts');
    answer(options, await usingStore(options, shareTree), describeTree);
    return;
  }
  if (options.history !== undefined) {
    answer(options, await findHistory(options, options.history), describeHistory);
    return;
  }
  answer(options, await findImages(options), (found) => {
    if (found.length === 0) return 'no images\n';
    const nowMs = Date.now();
    return table(
      COLUMNS,
      found.map((image) => row(image, nowMs)),
    );
  });
}

async function findImages(options: ImagesOptions): Promise<ImageInfo[]> {
  if (!options.store) return (await clientOf(options)).images();
  const { describeImages } = await import('../store/image-info.ts');
  return usingKeys(options, (store, keys) => describeImages(store, keys));
}

async function findHistory(options: ImagesOptions, name: string | true): Promise<PastReference[]> {
  if (!options.store) throw new LazydiskError('USAGE', '--history is of a store: give --store');
  return usingStore(options, (store) => store.history(name === true ? undefined : name));
}

const COLUMNS = [
  { title: 'name' },
  { title: 'digest' },
  { title: 'disk', align: 'right' },
  { title: 'chunks', align: 'right' },
  { title: 'stored', align: 'right' },
  { title: 'unique', align: 'right' },
  { title: 'age', align: 'right' },
  { title: 'keys' },
  { title: '' },
] as const;

function row(image: ImageInfo, nowMs: number): string[] {
  const size = (bytes: number | null) => (bytes === null ? '–' : formatSize(bytes));
  return [
    ...[image.name, short(image.digest), size(image.sizeBytes), `${image.storedChunks ?? '–'}`],
    ...[size(image.storedBytes), size(image.uniqueBytes)],
    ...[age(Date.parse(image.updated), nowMs), image.keys.join(' ') || '–', image.problem ?? ''],
  ];
}

/** The clock that wrote the time may be ahead of ours. */
function age(sinceMs: number, nowMs: number): string {
  return Number.isNaN(sinceMs) ? '–' : formatDuration(Math.max(0, nowMs - sinceMs));
}

function describeHistory(records: readonly PastReference[]): string {
  if (records.length === 0) return 'no history\n';
  return table(
    [{ title: 'set' }, { title: 'name' }, { title: 'digest' }],
    records.map(({ name, digest, updated }) => [
      updated.slice(0, 19).replace('T', ' '),
      name,
      digest ?? 'removed',
    ]),
  );
}

function short(digest: string): string {
  return digest.slice(0, 'sha256:'.length + 12);
}
