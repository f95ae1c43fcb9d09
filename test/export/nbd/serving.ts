/** An NBD server in the test's own process, on a new Unix socket, closed at the test's end. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Test } from 'tap';
import type { BlockDevice } from '../../../src/drive/block-device.ts';
import { DriveRegistry } from '../../../src/drive/registry.ts';
import { ByteBudget } from '../../../src/export/byte-budget.ts';
import type { NbdLimits } from '../../../src/export/nbd/limits.ts';
import type { ListenerStats } from '../../../src/export/nbd/ops.ts';
import { NbdServer } from '../../../src/export/nbd/server.ts';
import { CHUNK_BYTES } from '../../../src/format/chunk-id.ts';

export interface Serving {
  readonly server: NbdServer;
  readonly registry: DriveRegistry;
  readonly where: { path: string };
}

export async function serve(
  t: Test,
  devices: readonly BlockDevice[],
  limits: Partial<NbdLimits> = {},
  budget: ByteBudget = new ByteBudget(),
  onFull: (listener: ListenerStats) => void = () => {},
): Promise<Serving> {
  // A socket's path is at most 107 bytes long, so it is not in the test's own directory.
  const dir = mkdtempSync(join(tmpdir(), 'nbd-'));
  const registry = new DriveRegistry();
  for (const device of devices) registry.add(device);
  const server = new NbdServer({ registry, limits, budget, onFull });
  const where = { path: join(dir, 's') };
  await server.listen(where);
  t.teardown(async () => {
    await server.close();
    rmSync(dir, { recursive: true });
  });
  return { server, registry, where };
}

/** Chunks of data without repetition; those in `zeroChunks` are zero. */
export function content(chunks: number, zeroChunks: readonly number[] = []): Buffer {
  const bytes = Buffer.alloc(chunks * CHUNK_BYTES);
  for (let at = 0; at < bytes.length; at += 4)
    bytes.writeUInt32BE((Math.imul(at, 2654435761) ^ 0xa5a5a5a5) >>> 0, at);
  for (const n of zeroChunks) bytes.fill(0, n * CHUNK_BYTES, (n + 1) * CHUNK_BYTES);
  return bytes;
}

/** Resolves when `condition` holds; only the test's own timeout limits the wait. */
export async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 5));
}
