/** `lazydisk stat DRIVE` */
import { Command } from 'commander';
import type { DriveStat, TierInfo } from '../daemon/api.ts';
import { formatDuration, formatShare, formatSize } from '../units.ts';
import { answer, clientOf, type JsonOptions, type RunDirOptions, withJson, withRunDir } from './context.ts';
import { list, table } from './table.ts';

export function statCommand(): Command {
  return withJson(withRunDir(new Command('stat')), 'stat')
    .description('show what a drive has read, from which tier, and how fast')
    .argument('<drive>', 'its name')
    .addHelpText(
      'after',
      `
Drives of one image share one FUSE file: what is read through it is
counted for the one of them that was attached last.`,
    )
    .action(stat);
}

async function stat(drive: string, options: JsonOptions & RunDirOptions): Promise<void> {
  answer(options, await (await clientOf(options)).stat(drive), describe);
}

function describe(drive: DriveStat): string {
  const { lastError } = drive;
  const head = list([
    ['drive', drive.name],
    ['image', `${drive.image} (${formatSize(drive.sizeBytes)})`],
    ['read', `${formatSize(drive.readBytes)} in ${drive.reads} reads`],
    [
      'fetched',
      `${formatSize(drive.fetchedBytes)}, of which ${formatSize(drive.readaheadBytes)} read ahead, ` +
        `${formatSize(drive.readaheadUnusedBytes)} of that for nothing so far`,
    ],
    [
      'touched',
      `${drive.touchedChunks} of ${drive.storedChunks} chunks (${formatShare(drive.touchedShare)})`,
    ],
    ['in flight', `${drive.inFlight}`],
    ['errors', lastError ? [`${drive.errors}`, `${lastError.at}  ${lastError.text}`] : `${drive.errors}`],
  ]);
  return `${head}\n${table(COLUMNS, drive.tiers.map(row))}`;
}

const COLUMNS = [
  { title: 'tier' },
  { title: 'chunks', align: 'right' },
  { title: 'fetched', align: 'right' },
  { title: 'reads', align: 'right' },
  { title: 'p50', align: 'right' },
  { title: 'p99', align: 'right' },
  { title: 'max', align: 'right' },
] as const;

function row({ tier, chunks, bytes, reads, p50Ms, p99Ms, maxMs }: TierInfo): string[] {
  const times = [p50Ms, p99Ms, maxMs].map((ms) => (reads > 0 ? formatDuration(ms) : '–'));
  return [tier, `${chunks}`, formatSize(bytes), `${reads}`, ...times];
}
