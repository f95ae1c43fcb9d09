/** `lazydisk gc`: status, sweep, rotate, purge, run and policy of a store. */
import { Command } from 'commander';
import type { PurgeProgress, PurgeReport } from '../store/gc/purge.ts';
import type { RotateProgress, RotateReport } from '../store/gc/rotate.ts';
import type { GcOptions, SweepProgress, SweepReport } from '../store/gc/sweep.ts';
import { clockSkewMs, skewProblem } from '../store/roots/clock-skew.ts';
import type { StoreParts } from '../store/roots/parts.ts';
import { formatSize } from '../units.ts';
import {
  answer,
  type JsonOptions,
  longWork,
  type RetryFlags,
  storeOption,
  usingStore,
  withJson,
  withRetry,
} from './context.ts';
import { policyCommand } from './gc-policy.ts';
import { statusCommand } from './gc-status.ts';
import type { Progress, ProgressState } from './progress.ts';
import { list } from './table.ts';

interface GcCommandOptions extends JsonOptions, RetryFlags {
  readonly store?: string;
  readonly dryRun?: boolean;
}

interface RunReport {
  readonly sweep: SweepReport;
  readonly purge: PurgeReport;
}

export function gcCommand(): Command {
  return new Command('gc')
    .description('find and delete what no image needs, without a lock and while the store is in use')
    .addCommand(statusCommand())
    .addCommand(runCommand())
    .addCommand(sweepCommand())
    .addCommand(purgeCommand())
    .addCommand(rotateCommand())
    .addCommand(policyCommand())
    .addHelpText(
      'after',
      `
\`gc run\` daily from cron is all that most stores need. Each command can be stopped at any moment, run again, and run
beside builds, drives and itself on other machines.`,
    );
}

function withGc(name: 'sweep' | 'purge' | 'run' | 'rotate'): Command {
  return withRetry(withJson(new Command(name), `gc ${name}`))
    .addOption(storeOption())
    .option('--dry-run', 'change nothing but the journal, and say what would be done');
}

function sweepCommand(): Command {
  return withGc('sweep')
    .description('put aside what no name means and is older than the grace period')
    .addHelpText(
      'after',
      `
What is put aside is read as before; \`gc purge\` deletes it later. "lostNames" were set by a
writer that was stopped until their image was deleted: set them again, or remove them.`,
    )
    .action(async (options: GcCommandOptions) => {
      const report = await collect('sweep', options, sweeping);
      answer(options, report, () => describeSweep(report, options.dryRun ?? false));
    });
}

function purgeCommand(): Command {
  return withGc('purge')
    .description('delete what was put aside, when nobody has read it for the retention')
    .addHelpText(
      'after',
      `
What a name means again by then, or a host has attached, goes back first. "lostNames" were set in a root that
was given up by then, by a writer that died before it could set them in the next.`,
    )
    .action(async (options: GcCommandOptions) => {
      const report = await collect('purge', options, purging);
      answer(options, report, () => describePurge(report, options.dryRun ?? false));
    });
}

function runCommand(): Command {
  return withGc('run')
    .description('sweep, then purge: what cron runs')
    .action(async (options: GcCommandOptions) => {
      const report = await collect('gc', options, async (parts, progress, gc): Promise<RunReport> => {
        const sweep = await sweeping(parts, progress, gc);
        return { sweep, purge: await purging(parts, progress, gc) };
      });
      const dryRun = options.dryRun ?? false;
      answer(
        options,
        report,
        ({ sweep, purge }) => `${describeSweep(sweep, dryRun)}\n${describePurge(purge, dryRun)}`,
      );
    });
}

function rotateCommand(): Command {
  return withGc('rotate')
    .description('open the next root, move into it what names mean, and retire the one before')
    .addHelpText(
      'after',
      `
New builds then use another salt, so that whatever became of one chunk ends with its root. Images keep their bytes and
digests, and drives go on; new images share no chunks with old ones. \`gc purge\` deletes the old root after the
retention.`,
    )
    .action(async (options: GcCommandOptions) => {
      const report = await collect('rotate', options, rotating);
      answer(options, report, () => describeRotate(report, options.dryRun ?? false));
    });
}

type Work<T> = (
  parts: StoreParts,
  progress: Progress,
  options: Pick<GcOptions<never>, 'dryRun' | 'signal'>,
) => Promise<T>;

async function collect<T>(label: string, options: GcCommandOptions, work: Work<T>): Promise<T> {
  return longWork(label, options, ({ signal, progress, patience }) =>
    usingStore({ ...options, patience }, async ({ parts }) => {
      const problem = skewProblem(await clockSkewMs(parts.objects), parts);
      if (problem !== null) process.stderr.write(`lazydisk: warning: ${problem}\n`);
      return work(parts, progress, { dryRun: options.dryRun ?? false, signal });
    }),
  );
}

const sweeping: Work<SweepReport> = async (parts, progress, options) => {
  const { sweep } = await import('../store/gc/sweep.ts');
  return sweep(parts, { ...options, onProgress: (state) => progress.update(sweepProgress(state)) });
};

const purging: Work<PurgeReport> = async (parts, progress, options) => {
  const { purge } = await import('../store/gc/purge.ts');
  return purge(parts, { ...options, onProgress: (state) => progress.update(purgeProgress(state)) });
};

const rotating: Work<RotateReport> = async (parts, progress, options) => {
  const { rotate } = await import('../store/gc/rotate.ts');
  return rotate(parts, { ...options, onProgress: (state) => progress.update(rotateProgress(state)) });
};

function sweepProgress({ phase, done, total }: SweepProgress): ProgressState {
  return phase === 'mark'
    ? { done, total, unit: 'images', stage: 'what is alive' }
    : { done, total, unit: 'folders', stage: 'what is garbage' };
}

function purgeProgress({ area, objects, bytes }: PurgeProgress): ProgressState {
  return { done: objects, unit: 'objects', stage: `${formatSize(bytes)}, ${area}` };
}

function rotateProgress({ phase, done, total, movedBytes }: RotateProgress): ProgressState {
  return phase === 'wait'
    ? { done: 0, unit: 'names', stage: 'waiting until nobody writes to the old root' }
    : { done, total, unit: 'names', stage: `${formatSize(movedBytes)} moved` };
}

function describeSweep(report: SweepReport, dryRun: boolean): string {
  const { sweptChunks, sweptManifests, sweptBytes, restoredObjects, trash } = report;
  return list([
    ['alive', `${report.liveImages} images`],
    ...(report.unknownImages > 0
      ? [
          [
            'unknown',
            `${report.unknownImages} images with corrupt manifests: no chunk is put aside, see fsck`,
          ] as const,
        ]
      : []),
    ['kept', `${report.keptChunks} of ${report.chunks} chunks`],
    [
      dryRun ? 'would put aside' : 'put aside',
      `${formatSize(sweptBytes)} in ${sweptChunks} chunks and ${sweptManifests} manifests${trash === null ? '' : `, in ${trash}`}`,
    ],
    [dryRun ? 'would put back' : 'put back', `${restoredObjects} objects that are needed again`],
    ...lostRow(report.lostNames),
  ]);
}

/** Names that stopped writers left behind: their images do not exist, or are in a root that was given up. */
function lostRow(names: readonly string[]): [string, readonly string[]][] {
  return names.length > 0 ? [['names of nothing', names]] : [];
}

function describePurge(report: PurgeReport, dryRun: boolean): string {
  const { purged, held, deletedObjects, deletedBytes, restoredObjects, carriedImages } = report;
  return list([
    [dryRun ? 'would free' : 'freed', `${formatSize(deletedBytes)} in ${deletedObjects} objects`],
    [dryRun ? 'would delete' : 'deleted', purged],
    [
      dryRun ? 'would put back' : 'put back',
      `${restoredObjects} objects that are needed again, ${carriedImages} images that are attached`,
    ],
    ...lostRow(report.lostNames),
    [
      'held',
      held.map(({ area, why, until }) => `${area}: ${why}${until === null ? '' : `, until ${until}`}`),
    ],
  ]);
}

function describeRotate(report: RotateReport, dryRun: boolean): string {
  const { from, to, names, leasedImages, movedChunks, movedBytes } = report;
  return list([
    [dryRun ? 'would open' : 'active', to],
    [
      dryRun ? 'would move' : 'moved',
      `${names} names and ${leasedImages} images that are attached, ${formatSize(movedBytes)} in ${movedChunks} chunks`,
    ],
    [dryRun ? 'would retire' : 'retired', from],
    ...lostRow(report.lostNames),
  ]);
}
