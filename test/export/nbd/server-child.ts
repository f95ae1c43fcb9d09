/**
 * An NBD server in a separate process, over Buffers, which benchmarks measure and other programs connect to. As a
 * program it serves the drive described by its argument (a ServerSpec in JSON), prints "ready", and exits on SIGTERM.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { DriveRegistry } from '../../../src/drive/registry.ts';
import { NbdServer } from '../../../src/export/nbd/server.ts';
import { BufferDevice } from '../../support/buffer-device.ts';

const BUSY_PERIOD_MS = 40;

export interface ServerSpec {
  /** The path of the Unix socket. */
  readonly path: string;
  /** The drive's name, and the file that contains its bytes. */
  readonly name: string;
  readonly file: string;
  /** How long the event loop is blocked every 40 ms. Default 0. */
  readonly busyMs?: number;
  /** Whether native threads answer reads of data in memory. Default true. */
  readonly hits?: boolean;
}

/** Starts one and resolves when it listens. The caller must end it; `stop` returns its output. */
export async function startServer(
  spec: ServerSpec,
): Promise<{ child: ChildProcess; stop: () => Promise<string> }> {
  const child = spawn(process.execPath, [import.meta.filename, JSON.stringify(spec)], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let text = '';
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const take = (data: Buffer) => {
    text += data.toString();
    if (text.includes('ready\n')) resolve();
  };
  child.stdout.on('data', take);
  child.stderr.on('data', take);
  child.on('error', reject);
  child.on('exit', (code, signal) => reject(new Error(`the server exited (${code ?? signal}): ${text}`)));
  await promise;
  const stop = async () => {
    child.kill('SIGTERM');
    if (child.exitCode === null && child.signalCode === null) await once(child, 'close');
    return text;
  };
  return { child, stop };
}

async function main({ path, name, file, busyMs = 0, hits = true }: ServerSpec): Promise<void> {
  const registry = new DriveRegistry();
  registry.add(new BufferDevice(readFileSync(file), { name, hits }));
  const server = new NbdServer({ registry });
  await server.listen({ path });
  process.once('SIGTERM', () => void server.close({ drainMs: 1000 }));
  if (busyMs > 0) setInterval(() => holdUp(busyMs), BUSY_PERIOD_MS).unref();
  console.log('ready');
}

function holdUp(busyMs: number): void {
  const until = performance.now() + busyMs;
  while (performance.now() < until);
}

if (import.meta.main) await main(JSON.parse(process.argv[2]!));
