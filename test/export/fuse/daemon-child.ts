/**
 * A FUSE daemon in a separate process, over Buffers, which tests kill and benchmarks measure. As a program it mounts
 * the drive described by its argument (a DaemonSpec in JSON), prints "ready", serves until SIGTERM, and unmounts. On
 * SIGINT it exits at once, as after an uncaught exception.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { DriveRegistry } from '../../../src/drive/registry.ts';
import { FuseMount } from '../../../src/export/fuse/mount.ts';
import { CHUNK_BYTES } from '../../../src/format/chunk-id.ts';
import { BufferDevice } from '../../support/buffer-device.ts';

export interface DaemonSpec {
  readonly dir: string;
  /** The content of the drive, whose name is `drive`: a seed, or a file to read it from. */
  readonly content: { readonly sizeBytes: number; readonly seed: number } | { readonly file: string };
  readonly pushChunks: boolean;
  /** Reads that touch this offset never finish; the rest of the drive is cold until it is read. */
  readonly stallAt?: number;
}

/** The drive's bytes for a seed: random, except that every eighth chunk is zero. */
export function contentOf(sizeBytes: number, seed: number): Buffer {
  const bytes = Buffer.alloc(sizeBytes);
  const unit = randomFillSync(Buffer.alloc(CHUNK_BYTES));
  unit.fill(`content ${seed} `, 0, 4096);
  for (let at = 0; at < sizeBytes; at += CHUNK_BYTES) {
    if ((at / CHUNK_BYTES) % 8 === 7) continue;
    unit.copy(bytes, at);
    bytes.writeUInt32LE(at / CHUNK_BYTES, at);
  }
  return bytes;
}

/** Starts one and resolves when it serves. The caller must stop it. */
export async function startDaemon(
  spec: DaemonSpec,
  prefix: readonly string[] = [],
): Promise<{ child: ChildProcess; stop: () => Promise<string> }> {
  const [command, ...args] = [...prefix, process.execPath, import.meta.filename, JSON.stringify(spec)];
  const child = spawn(command!, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  let text = '';
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const take = (data: Buffer) => {
    text += data.toString();
    if (text.includes('ready\n')) resolve();
  };
  child.stdout!.on('data', take);
  child.stderr!.on('data', take);
  child.on('error', reject);
  child.on('exit', (code, signal) => reject(new Error(`the daemon exited (${code ?? signal}): ${text}`)));
  await promise;
  const stop = async () => {
    child.kill('SIGTERM');
    if (child.exitCode === null && child.signalCode === null) await once(child, 'close');
    return text;
  };
  return { child, stop };
}

async function main(spec: DaemonSpec): Promise<void> {
  const { content, stallAt } = spec;
  const bytes = 'file' in content ? readFileSync(content.file) : contentOf(content.sizeBytes, content.seed);
  const registry = new DriveRegistry();
  const stall = (offset: number, lengthBytes: number) => {
    const touched = stallAt !== undefined && offset <= stallAt && stallAt < offset + lengthBytes;
    return touched ? new Promise<void>(() => {}) : undefined;
  };
  registry.add(
    new BufferDevice(bytes, { name: 'drive', cold: stallAt !== undefined, hits: true, beforeRead: stall }),
  );
  const mount = await FuseMount.mount({ dir: spec.dir, registry, pushChunks: spec.pushChunks });
  process.once('SIGTERM', async () => {
    await mount.unmount();
    console.log('unmounted');
  });
  process.once('SIGINT', () => process.exit(3));
  console.log('ready');
}

if (import.meta.main) await main(JSON.parse(process.argv[2]!));
