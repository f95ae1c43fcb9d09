/**
 * Runs one QEMU microVM: `-M microvm`, virtio-blk, a serial console on its standard output. It ends when the guest
 * reports its result, at the timeout, or when the caller aborts. The process never outlives the call.
 */
import { spawn } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { LazydiskError } from '../errors.ts';

export type Accelerator = 'kvm' | 'tcg';

/** How QEMU gets the drive: a file (the FUSE export's) or an NBD URI. */
export type DrivePlace = { readonly file: string } | { readonly nbd: string };

export interface QemuOptions {
  readonly accel: Accelerator;
  readonly kernel: string;
  readonly initramfs: string;
  readonly drive?: DrivePlace;
  readonly memoryMb: number;
  readonly timeoutMs: number;
  readonly signal?: AbortSignal;
  /** Called with each whole line of the console. True: the guest is done. */
  readonly onLine: (line: string) => boolean;
}

const PROGRAMS: Partial<Record<NodeJS.Architecture, string>> = { x64: 'qemu-system-x86_64' };
/** A console line longer than this is cut. */
const LINE_BYTES_MAX = 64 * 1024;
const STDERR_BYTES_MAX = 8192;
/** Used where the system does not tell; only the guest's sense of time depends on it. */
const DEFAULT_MHZ = 2000;
const KERNEL_COMMAND_LINE = 'console=ttyS0 quiet loglevel=0 reboot=t panic=-1 random.trust_cpu=on';

/**
 * Runs the guest. Resolves when it is done. Rejects with TIMEOUT, ABORTED, or UNAVAILABLE (QEMU is missing, or
 * exited by itself; the text has its error output).
 */
export async function runQemu(options: QemuOptions): Promise<void> {
  const program = PROGRAMS[process.arch];
  if (!program) throw new LazydiskError('UNSUPPORTED', `microVMs are not supported on ${process.arch}`);
  options.signal?.throwIfAborted();
  const args = await qemuArguments(options);
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  // Not once(), whose promise rejects, too, for a program that did not start; nobody would await that.
  const ended = new Promise<void>((resolve) => child.once('close', () => resolve()));
  let errorOutput = '';
  child.stderr.on('data', (bytes: Buffer) => {
    errorOutput = (errorOutput + bytes.toString('utf8')).slice(-STDERR_BYTES_MAX);
  });
  try {
    await new Promise<void>((resolve, reject) => {
      const late = setTimeout(() => {
        reject(new LazydiskError('TIMEOUT', `the guest did not finish within ${options.timeoutMs} ms`));
      }, options.timeoutMs);
      const aborted = () => reject(new LazydiskError('ABORTED', 'the guest was stopped'));
      options.signal?.addEventListener('abort', aborted, { once: true });
      eachLine(child.stdout, (line) => {
        if (options.onLine(line)) resolve();
      });
      child.once('error', (error: NodeJS.ErrnoException) => {
        const text =
          error.code === 'ENOENT' ? `${program} is missing: apt-get install qemu-system-x86` : error.message;
        reject(new LazydiskError('UNAVAILABLE', text, { cause: error }));
      });
      child.once('close', (code) => {
        clearTimeout(late);
        options.signal?.removeEventListener('abort', aborted);
        reject(
          new LazydiskError(
            'UNAVAILABLE',
            `${program} exited (${code}): ${errorOutput.trim() || 'no message'}`,
          ),
        );
      });
    });
  } finally {
    child.kill('SIGKILL');
    // A program that did not start has no exit to wait for.
    if (child.pid !== undefined) await ended;
  }
}

function eachLine(stream: NodeJS.ReadableStream, take: (line: string) => void): void {
  let rest = '';
  stream.on('data', (bytes: Buffer) => {
    const lines = (rest + bytes.toString('utf8')).split(/\r*\n/);
    rest = lines.pop()!.slice(-LINE_BYTES_MAX);
    for (const line of lines) take(line);
  });
}

async function qemuArguments({ accel, kernel, initramfs, drive, memoryMb }: QemuOptions): Promise<string[]> {
  const machine = ['-M', `microvm,accel=${accel}`, '-cpu', accel === 'kvm' ? 'host' : 'max'];
  const quiet = ['-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot', '-serial', 'stdio'];
  const boot = ['-m', `${memoryMb}M`, '-smp', '1', '-kernel', kernel, '-initrd', initramfs];
  return [
    ...machine,
    ...quiet,
    ...boot,
    '-append',
    accel === 'tcg' ? `${KERNEL_COMMAND_LINE} tsc_early_khz=${await tscKhz()}` : KERNEL_COMMAND_LINE,
    ...(drive ? driveArguments(drive) : []),
  ];
}

/**
 * The host's clock rate, which an emulated guest needs. Otherwise the guest calibrates it against an emulated timer;
 * on a busy host that fails, and the guest then waits forever for a tick that never comes.
 */
async function tscKhz(): Promise<number> {
  const text = await readFile('/proc/cpuinfo', 'utf8').catch(() => '');
  const mhz = Number(/^cpu MHz\s*:\s*([\d.]+)/m.exec(text)?.[1] ?? DEFAULT_MHZ);
  return Math.round(mhz * 1000);
}

function driveArguments(drive: DrivePlace): string[] {
  const source =
    'file' in drive
      ? `driver=file,filename=${escapeComma(drive.file)},locking=off`
      : nbdArguments(new URL(drive.nbd));
  return [
    '-blockdev',
    `${source},node-name=source,read-only=on`,
    '-blockdev',
    'driver=raw,file=source,node-name=root,read-only=on',
    '-device',
    'virtio-blk-device,drive=root',
  ];
}

function nbdArguments(uri: URL): string {
  const name = escapeComma(decodeURIComponent(uri.pathname.replace(/^\//, '')));
  const path = uri.searchParams.get('socket');
  const server = path
    ? `server.type=unix,server.path=${escapeComma(path)}`
    : `server.type=inet,server.host=${uri.hostname},server.port=${uri.port || 10809}`;
  return `driver=nbd,${server},export=${name}`;
}

/** QEMU takes two commas for one inside a value. */
function escapeComma(text: string): string {
  return text.replaceAll(',', ',,');
}
