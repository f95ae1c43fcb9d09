/** The demo's result: what each boot read, how much of it was fetched and from where, and how long it took. */
import type { Booted } from '../cli/boot.ts';
import { table } from '../cli/table.ts';
import type { DriveStat, TierInfo } from '../daemon/api.ts';
import type { BuildReport } from '../image/build.ts';
import { formatDuration, formatShare, formatSize } from '../units.ts';

export interface Run {
  readonly via: 'fuse' | 'nbd';
  readonly state: 'cold' | 'warm';
  readonly booted: Booted;
}

export function bootTable(built: BuildReport, runs: readonly Run[]): string {
  const row = (name: string, cell: (booted: Booted) => string) => [
    name,
    ...runs.map(({ booted }) => cell(booted)),
  ];
  const columns = [
    { title: '' },
    ...runs.map(({ via, state }) => ({ title: `${via} ${state}`, align: 'right' as const })),
  ];
  const rows = [
    row('attached in', ({ timings }) => formatDuration(timings.attachMs)),
    row("attach to the guest's userland", ({ timings }) =>
      formatDuration(timings.attachMs + timings.userlandMs),
    ),
    row("attach to the command's end", ({ timings }) => formatDuration(timings.attachMs + timings.totalMs)),
    row('read by the guest', ({ drive }) => formatSize(drive.readBytes)),
    row('fetched', ({ drive }) => formatSize(drive.fetchedBytes)),
    row('  share of the stored image', ({ drive }) => formatShare(drive.fetchedBytes / built.sealedBytes)),
    row('chunks touched', ({ drive }) => `${drive.touchedChunks} of ${drive.storedChunks}`),
    row('chunks from the disk cache', ({ drive }) => String(tierOf(drive, 'disk')?.chunks ?? 0)),
    row('chunks from the origin', ({ drive }) => String(tierOf(drive, 'origin')?.chunks ?? 0)),
    row('reads answered from memory', ({ drive }) =>
      formatShare((tierOf(drive, 'memory')?.reads ?? 0) / Math.max(1, drive.reads)),
    ),
  ];
  const accel =
    runs[0]?.booted.accel === 'kvm'
      ? 'KVM'
      : 'TCG, which emulates the processor (no KVM here, so boot times are long)';
  return `${table(columns, rows)}
The image: ${formatSize(built.inputBytes)} in ${built.layers} layers; as a disk ${formatSize(built.diskBytes)}; stored ${formatSize(built.sealedBytes)} in ${built.storedChunks} chunks.
Cold: this host never saw the image. Warm: it did, and the daemon was started anew.
The guests ran under ${accel}.
`;
}

function tierOf(drive: DriveStat, tier: TierInfo['tier']): TierInfo | undefined {
  return drive.tiers.find((found) => found.tier === tier);
}
