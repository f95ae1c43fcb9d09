/** `lazydisk boot IMAGE`: attach, start a microVM with the drive as its root, detach. */
import { randomBytes } from 'node:crypto';
import { Command, Option } from 'commander';
import type { BootResult } from '../boot/boot.ts';
import type { DriveInfo, DriveStat } from '../daemon/api.ts';
import { driveNameFor } from '../drive/drive-name.ts';
import { LazydiskError } from '../errors.ts';
import { formatDuration, formatShare, formatSize, parseDuration, parseSize } from '../units.ts';
import {
  answer,
  clientOf,
  interruptible,
  type JsonOptions,
  type RunDirOptions,
  withJson,
  withRunDir,
} from './context.ts';
import { list } from './table.ts';

type Via = 'fuse' | 'nbd';

interface BootOptions extends JsonOptions, RunDirOptions {
  readonly via?: Via;
  readonly kernel?: string;
  readonly command?: string;
  readonly memory: string;
  readonly timeout: string;
  readonly accel: 'auto' | 'kvm' | 'tcg';
}

/** What it answers with --json. */
export interface Booted extends BootResult {
  readonly drive: DriveStat;
  readonly via: Via;
  readonly timings: BootResult['timings'] & { readonly attachMs: number };
}

export function bootCommand(): Command {
  return withJson(withRunDir(new Command('boot')), 'boot')
    .description('start a microVM (QEMU) with an image as its root drive')
    .argument('<image>', 'NAME[:TAG] or sha256:…')
    .addOption(new Option('--via <export>', 'how QEMU gets the drive').choices(['fuse', 'nbd']))
    .option('--kernel <file>', "a kernel to boot (default: Debian's cloud kernel)")
    .option('--command <command>', 'what to run in the guest, with sh -c (default: show the system)')
    .option('--memory <size>', 'memory of the guest', '512M')
    .option('--timeout <time>', 'how long the guest may run', '5m')
    .addOption(new Option('--accel <kind>', 'how to run it').choices(['auto', 'kvm', 'tcg']).default('auto'))
    .addHelpText(
      'after',
      `
Over FUSE if the daemon has it, else over NBD. The guest's console goes to standard output and the exit code is the
guest command's. In JSON, "userlandMs" and "totalMs" are counted from QEMU's start.`,
    )
    .action(boot);
}

async function boot(image: string, options: BootOptions): Promise<void> {
  const memoryMb = Math.ceil(parseSize(options.memory) / 1024 ** 2);
  const timeoutMs = parseDuration(options.timeout);
  const client = await clientOf(options);
  const name = `${driveNameFor(image).slice(0, 100)}-boot-${randomBytes(4).toString('hex')}`;
  const startMs = performance.now();
  const attached = await client.attach({ image, name });
  const attachMs = performance.now() - startMs;
  try {
    const { via, drive } = placeOf(attached, options.via);
    const { bootMicroVm } = await import('../boot/boot.ts');
    const result = await interruptible((signal) =>
      bootMicroVm({
        via,
        drive,
        ...(options.kernel !== undefined && { kernel: options.kernel }),
        ...(options.command !== undefined && { command: options.command }),
        memoryMb,
        timeoutMs,
        accel: options.accel,
        ...(!options.json && { onConsole: (text: string) => void process.stdout.write(text) }),
        signal,
      }),
    );
    const booted = {
      drive: await client.stat(name),
      via,
      ...result,
      timings: { attachMs, ...result.timings },
    };
    if (options.json) answer(options, booted, () => '');
    else process.stderr.write(summary(booted));
    process.exitCode = result.exitCode;
  } finally {
    await client.detach(name);
  }
}

function placeOf(drive: DriveInfo, wanted: Via | undefined): { via: Via; drive: string } {
  const via = wanted ?? (drive.fuse === null ? 'nbd' : 'fuse');
  if (via === 'nbd') return { via, drive: drive.nbd };
  if (drive.fuse === null)
    throw new LazydiskError('UNAVAILABLE', 'this daemon has no FUSE: boot with --via nbd');
  return { via, drive: drive.fuse };
}

function summary({ drive, via, accel, timings }: Booted): string {
  const { attachMs, userlandMs, totalMs } = timings;
  return `\n${list([
    ['drive', `${drive.image} over ${via}, ${accel}`],
    ['attached in', formatDuration(attachMs)],
    ['userland after', formatDuration(userlandMs)],
    ['ended after', formatDuration(totalMs)],
    ['read', `${formatSize(drive.readBytes)} in ${drive.reads} reads`],
    ['fetched', formatSize(drive.fetchedBytes)],
    [
      'touched',
      `${drive.touchedChunks} of ${drive.storedChunks} chunks (${formatShare(drive.touchedShare)})`,
    ],
  ])}`;
}
