/** `lazydisk fsck` */
import { Command } from 'commander';
import { LazydiskError } from '../errors.ts';
import type { FsckOptions } from '../store/fsck/fsck.ts';
import type { FsckReport } from '../store/fsck/report.ts';
import { parseShare } from '../units.ts';
import {
  answer,
  type JsonOptions,
  longWork,
  type RetryFlags,
  type StoreOptions,
  usingKeys,
  withJson,
  withRetry,
  withStore,
} from './context.ts';
import { describeFsck } from './fsck-report.ts';
import type { SourceOptions } from './fsck-sources.ts';
import { another, settingOption } from './setting-option.ts';

interface FsckCommandOptions extends JsonOptions, StoreOptions, SourceOptions, RetryFlags {
  readonly sample: string;
  readonly all?: boolean;
  readonly seed?: string;
  readonly repair?: boolean;
  readonly dryRun?: boolean;
  readonly resume?: string;
}

export function fsckCommand(): Command {
  return withRetry(withJson(withStore(new Command('fsck')), 'fsck'))
    .description('check a whole store, and mend it from good copies elsewhere')
    .option('--sample <share>', 'share of the chunks whose bytes are read and proven', '1%')
    .option('--all', 'read and prove all of them')
    .option('--seed <n>', 'which sample; those of following numbers are others (default: one a day)')
    .option('--resume <file>', 'keep the state here, and go on from it after a stop')
    .option('--repair', 'put good copies in the place of what is damaged or gone')
    .option('--dry-run', 'with --repair: write nothing, and say what would be mended')
    .option('--from <url>', 'a store to take good copies from; may be given again', another)
    .option(
      '--cache <dir>',
      "a daemon's disk cache to take them from, in use or not; may be given again",
      another,
    )
    .option('--fleet <url>', 'a cache fleet to take them from, as for `lazydisk serve`')
    .addOption(settingOption('fleet_tls'))
    .addOption(settingOption('fleet_login'))
    .addHelpText(
      'after',
      `
Every name must mean a manifest that proves itself, and every chunk of it must be there with the right length; those of
the sample are read and compared with their ids. It needs no key; with --key it opens manifests, and names the paths that
damaged chunks hit. It may run beside everything else, and changes nothing but what it mends. A chunk that is damaged is
looked for in the rest of the store, then in --cache, --fleet and --from, and written only when its bytes are proven. Of a
manifest only its key proves all: without it none is replaced, and one that is put where nothing was is told as unproven.
Exit code 6 if anything is damaged or missing in the end, else 5 if something was mended that no key has proven.`,
    )
    .action(fsckStore);
}

async function fsckStore(options: FsckCommandOptions): Promise<void> {
  const checked = checkOptions(options);
  const [{ fsck }, { usingSources }, { ext4Paths }] = await Promise.all([
    import('../store/fsck/fsck.ts'),
    import('./fsck-sources.ts'),
    import('../image/damaged-paths.ts'),
  ]);
  const report = await longWork('fsck', options, ({ signal, progress, patience }) =>
    usingKeys({ ...options, patience }, (store, keys) =>
      usingSources(options, (sources) =>
        fsck(store.parts, {
          ...checked,
          ...(keys && { keys, paths: ext4Paths }),
          ...(options.repair && { repair: { sources, dryRun: options.dryRun ?? false } }),
          onProgress: ({ phase, done, total }) =>
            progress.update(
              phase === 'manifests'
                ? { done, total, unit: 'images' }
                : { done, total, unit: 'chunks', ...(phase === 'damage' && { stage: 'damaged' }) },
            ),
          signal,
        }),
      ),
    ),
  );
  answer(options, report, describeFsck);
  if (report.remaining > 0) throw new LazydiskError('CORRUPT', remainingText(report));
  if (report.repair && report.repair.unproven > 0)
    throw new LazydiskError(
      'KEY',
      `${report.store}: ${report.repair.unproven} mended with manifests that no key has opened: run it again with --key`,
    );
}

function checkOptions(options: FsckCommandOptions): Pick<FsckOptions, 'sample' | 'seed' | 'resume'> {
  const { repair, dryRun, from, cache, fleet, seed, resume } = options;
  if (!repair && (dryRun || from || cache || fleet !== undefined))
    throw new LazydiskError('USAGE', 'fsck: --dry-run, --from, --cache and --fleet are of use with --repair');
  if (seed !== undefined && !/^\d{1,9}$/.test(seed))
    throw new LazydiskError('USAGE', `seed ${JSON.stringify(seed)}: want a whole number`);
  return {
    sample: options.all ? 1 : parseShare(options.sample),
    ...(seed !== undefined && { seed: Number(seed) }),
    ...(resume !== undefined && { resume }),
  };
}

function remainingText({ store, remaining, repair, problems }: FsckReport): string {
  const hasUnproven = problems.some(({ unproven, repaired }) => unproven && !repaired);
  const how = repair
    ? hasUnproven
      ? 'a manifest is replaced only when --key proves that its copy is good'
      : 'no source has a good copy of what is left'
    : '`lazydisk fsck --repair` mends what has a good copy elsewhere';
  return `${store}: ${remaining} damaged or missing; ${repair?.dryRun ? 'this was a dry run' : how}`;
}
