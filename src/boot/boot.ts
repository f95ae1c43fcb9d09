/** Boots a microVM from one of our drives, runs a command in it, and reports the result and the times. */
import { randomBytes } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { LazydiskError } from '../errors.ts';
import { findAccelerator } from './accelerator.ts';
import { buildInitramfs, EXIT_MARK, FAILED_MARK, USERLAND_MARK } from './initramfs.ts';
import { debianKernel } from './kernel.ts';
import { type Accelerator, runQemu } from './qemu.ts';

/** Shows that the image's own userland is running. */
const DEFAULT_COMMAND = 'cat /etc/os-release; uname -a; df -h /';
const CONSOLE_BYTES_MAX = 16 * 1024 * 1024;
const COMMAND_BYTES_MAX = 128 * 1024;

export interface BootOptions {
  readonly via: 'fuse' | 'nbd';
  /** A file, or an NBD URI. */
  readonly drive: string;
  /** A kernel with ext4, virtio-blk and overlayfs built in; default: Debian's cloud kernel. */
  readonly kernel?: string;
  /** Passed to the image's `sh -c`. */
  readonly command?: string;
  readonly memoryMb?: number;
  readonly timeoutMs?: number;
  readonly accel?: 'auto' | Accelerator;
  readonly signal?: AbortSignal;
  /** Called with what the command prints, as it arrives. */
  readonly onConsole?: (text: string) => void;
}

export interface BootResult {
  /** The exit code of the command in the guest. */
  readonly exitCode: number;
  /** What the command printed, standard output and error together. */
  readonly console: string;
  readonly accel: Accelerator;
  readonly timings: {
    /** From QEMU's start to the image's own shell. */
    readonly userlandMs: number;
    /** From QEMU's start to the command's end. */
    readonly totalMs: number;
  };
}

/** Throws TIMEOUT, ABORTED, UNAVAILABLE (a missing program, or a guest that does not come up; the text has its last output). */
export async function bootMicroVm(options: BootOptions): Promise<BootResult> {
  const command = options.command ?? DEFAULT_COMMAND;
  if (command.length > COMMAND_BYTES_MAX)
    throw new LazydiskError('USAGE', 'the command for the guest is too long');
  const kernel = options.kernel ? { image: options.kernel, modules: undefined } : await debianKernel();
  const wanted = options.accel ?? 'auto';
  const accel = wanted === 'auto' ? await findAccelerator(kernel.image) : wanted;
  const directory = await mkdtemp(join(tmpdir(), 'lazydisk-boot-'));
  try {
    const token = `lazydisk-${randomBytes(16).toString('hex')}`;
    const initramfs = join(directory, 'initramfs');
    await writeFile(initramfs, await buildInitramfs(kernel.modules, { command, token }));
    return await watchGuest(options, token, { accel, kernel: kernel.image, initramfs });
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

async function watchGuest(
  options: BootOptions,
  token: string,
  machine: { accel: Accelerator; kernel: string; initramfs: string },
): Promise<BootResult> {
  const startedMs = performance.now();
  let userlandMs: number | undefined;
  let exitCode: number | undefined;
  let failure: string | undefined;
  let output = '';
  const say = (text: string) => {
    if (output.length + text.length > CONSOLE_BYTES_MAX) return;
    output += text;
    options.onConsole?.(text);
  };
  const onLine = (line: string): boolean => {
    const at = line.indexOf(`${token} `);
    if (at < 0) {
      if (userlandMs !== undefined) say(`${line}\n`);
      return false;
    }
    const [mark, ...words] = line.slice(at + token.length + 1).split(' ');
    if (mark === USERLAND_MARK) userlandMs = performance.now() - startedMs;
    if (mark === EXIT_MARK) exitCode = Number(words[0]);
    if (mark === FAILED_MARK) failure = words.join(' ');
    return mark === EXIT_MARK || mark === FAILED_MARK;
  };
  await runQemu({
    ...machine,
    drive: options.via === 'fuse' ? { file: options.drive } : { nbd: options.drive },
    memoryMb: options.memoryMb ?? 512,
    timeoutMs: options.timeoutMs ?? 300_000,
    ...(options.signal && { signal: options.signal }),
    onLine,
  });
  if (exitCode === undefined) {
    throw new LazydiskError('UNAVAILABLE', `the guest did not come up: ${failure ?? 'it gave no reason'}`);
  }
  if (userlandMs === undefined) {
    throw new LazydiskError('UNAVAILABLE', `the image has no working /bin/sh (exit code ${exitCode})`);
  }
  return {
    exitCode,
    // Init adds the line end that the command's last line may lack.
    console: output.endsWith('\n\n') ? output.slice(0, -1) : output,
    accel: machine.accel,
    timings: { userlandMs, totalMs: performance.now() - startedMs },
  };
}
