/** `lazydisk copy IMAGE FROM TO` */
import { Command } from 'commander';
import { LazydiskError } from '../errors.ts';
import type { CopyProgress, CopyReport } from '../store/copy.ts';
import type { RootStore } from '../store/root-store.ts';
import { formatDuration, formatSize } from '../units.ts';
import {
  answer,
  interruptible,
  type JsonOptions,
  openKeys,
  usingStoreAt,
  withJson,
  withKey,
} from './context.ts';
import { Progress, type ProgressState } from './progress.ts';
import { list } from './table.ts';

interface CopyCommandOptions extends JsonOptions {
  readonly key?: readonly string[];
  readonly name?: string;
  readonly dryRun?: boolean;
}

export function copyCommand(): Command {
  return withJson(withKey(new Command('copy')))
    .description('copy an image from one store to another, with what the other has not yet')
    .argument('<image>', 'NAME[:TAG] or sha256:…')
    .argument('<from>', 'the store that has it, as --store takes it')
    .argument('<to>', 'the store that is to have it; it is made if it is not there')
    .option('--name <name[:tag]>', 'what to call the image there (default: as here)')
    .option('--dry-run', 'change nothing, and say what would be copied')
    .addHelpText(
      'after',
      `
Needs no key: chunks and manifests stay sealed as they are, and each is proven before it is written. The image opens
with the keys that opened it before. --key is for a store that cannot be listed (https://…), to say whose manifest to
copy. A copy that was stopped and is run again copies only what is missing.
JSON: name, digest, chunks, copiedChunks, copiedBytes, presentChunks, manifests, durationMs.`,
    )
    .action(copy);
}

async function copy(image: string, from: string, to: string, options: CopyCommandOptions): Promise<void> {
  const { copyImage } = await import('../store/copy.ts');
  const { name, dryRun = false } = options;
  const progress = new Progress(`copy ${image}`);
  const report = await interruptible((signal) =>
    usingStoreAt(from, false, (source) =>
      usingTarget(to, dryRun, async (target) =>
        copyImage({
          from: source,
          to: target,
          image,
          ...(name !== undefined && { name }),
          ...(options.key && { keyIds: () => keyIdsOf(options.key!, source) }),
          dryRun,
          onProgress: (state) => progress.update(progressOf(state)),
          signal,
        }),
      ),
    ),
  ).finally(() => progress.end());
  answer(options, report, () => describe(report, dryRun));
}

/** A dry run makes no store: then there is none to look into. */
async function usingTarget<T>(
  url: string,
  dryRun: boolean,
  use: (store: RootStore | undefined) => Promise<T>,
): Promise<T> {
  if (!dryRun) return usingStoreAt(url, true, use);
  const { openStore } = await import('../store/open.ts');
  const store = await openStore(url).catch((error) => {
    if (error instanceof LazydiskError && error.code === 'NOT_FOUND') return undefined;
    throw error;
  });
  try {
    return await use(store);
  } finally {
    await store?.close();
  }
}

async function keyIdsOf(specs: readonly string[], store: RootStore): Promise<string[]> {
  const keys = await openKeys(specs, store);
  try {
    return await keys.ids();
  } finally {
    keys.close();
  }
}

function progressOf({ doneBytes, totalBytes, presentChunks }: CopyProgress): ProgressState {
  return { doneBytes, totalBytes, stage: `${presentChunks} chunks were there` };
}

function describe(report: CopyReport, dryRun: boolean): string {
  const { chunks, copiedChunks, presentChunks, manifests } = report;
  return list([
    ['name', report.name],
    ['digest', report.digest],
    ['chunks', `${chunks}, of which ${presentChunks} ${dryRun ? 'are' : 'were'} there`],
    [dryRun ? 'would copy' : 'copied', `${formatSize(report.copiedBytes)} in ${copiedChunks} chunks`],
    ['keys', `${manifests}`],
    ['time', formatDuration(report.durationMs)],
  ]);
}
