/** `lazydisk copy IMAGE FROM TO` */
import { Command } from 'commander';
import type { Patience } from '../async/patience.ts';
import { codeOf, LazydiskError } from '../errors.ts';
import type { CopyProgress, CopyReport } from '../store/copy.ts';
import type { RootStore } from '../store/roots/root-store.ts';
import { formatDuration, formatSize } from '../units.ts';
import {
  answer,
  type JsonOptions,
  longWork,
  type RetryFlags,
  usingKeysOf,
  usingStoreAt,
  withJson,
  withKey,
  withRetry,
} from './context.ts';
import type { ProgressState } from './progress.ts';
import { list } from './table.ts';

interface CopyCommandOptions extends JsonOptions, RetryFlags {
  readonly key?: readonly string[];
  readonly name?: string;
  readonly dryRun?: boolean;
}

export function copyCommand(): Command {
  return withRetry(withJson(withKey(new Command('copy')), 'copy'))
    .description('copy an image from one store to another, with what the other has not yet')
    .argument('<image>', 'NAME[:TAG] or sha256:…')
    .argument('<from>', 'the store that has it, as --store takes it')
    .argument('<to>', 'the store that is to have it; it is made if it is not there')
    .option('--name <name[:tag]>', 'what to call the image there (default: as here)')
    .option('--dry-run', 'change nothing, and say what would be copied')
    .addHelpText(
      'after',
      `
Needs no key: chunks and manifests stay sealed as they are. The image opens with the keys that opened it before. Chunks are
proven before they are written. Of a manifest only --key proves all: without it, one that the target has already stays;
if that is another one, exit code 5 says so when all else is done. For a store that cannot be listed (https://…), --key
says whose manifest to copy. A copy that was stopped and is run again copies only what is missing.
In JSON, "keptManifests" are ids of keys.`,
    )
    .action(copy);
}

async function copy(image: string, from: string, to: string, options: CopyCommandOptions): Promise<void> {
  const { copyImage } = await import('../store/copy.ts');
  const { name, dryRun = false } = options;
  const report = await longWork(`copy ${image}`, options, ({ signal, progress, patience }) =>
    usingStoreAt(from, { patience }, (source) =>
      usingTarget(to, dryRun, patience, (target) =>
        usingKeysOf(options.key, source, (keys) =>
          copyImage({
            from: source,
            to: target,
            image,
            ...(name !== undefined && { name }),
            ...(keys && { keys }),
            dryRun,
            onProgress: (state) => progress.update(progressOf(state)),
            signal,
          }),
        ),
      ),
    ),
  );
  answer(options, report, () => describe(report, dryRun));
  const [kept] = report.keptManifests;
  if (kept !== undefined)
    throw new LazydiskError(
      'KEY',
      `${to} has another manifest of ${report.digest} for key ${kept}, and keeps it: which one is good only --key can tell`,
    );
}

/** A dry run does not create the target store, so there may be none to look into. */
async function usingTarget<T>(
  url: string,
  dryRun: boolean,
  patience: Patience,
  use: (store: RootStore | undefined) => Promise<T>,
): Promise<T> {
  if (!dryRun) return usingStoreAt(url, { create: true, patience }, use);
  const { openStore } = await import('../store/open.ts');
  const store = await openStore(url, { patience }).catch((error) => {
    if (codeOf(error) === 'NOT_FOUND') return undefined;
    throw error;
  });
  try {
    return await use(store);
  } finally {
    await store?.close();
  }
}

function progressOf({ doneBytes, totalBytes, presentChunks }: CopyProgress): ProgressState {
  return { doneBytes, totalBytes, stage: `${presentChunks} chunks were there` };
}

function describe(report: CopyReport, dryRun: boolean): string {
  const { chunks, copiedChunks, presentChunks, manifests, provenManifests, keptManifests } = report;
  const kept = keptManifests.length > 0 ? `; the target keeps its own for ${keptManifests.join(', ')}` : '';
  return list([
    ['name', report.name],
    ['digest', report.digest],
    ['chunks', `${chunks}, of which ${presentChunks} ${dryRun ? 'are' : 'were'} there`],
    [dryRun ? 'would copy' : 'copied', `${formatSize(report.copiedBytes)} in ${copiedChunks} chunks`],
    ['keys', `${manifests}, of which ${provenManifests} were proven${kept}`],
    ['time', formatDuration(report.durationMs)],
  ]);
}
