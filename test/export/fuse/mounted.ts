/**
 * What tests on real mounts share. The test's own process serves the mount, so nothing here may touch it except child
 * processes, which are waited for without blocking.
 */
import { type ExecFileException, execFile } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Test } from 'tap';
import type { BlockDevice } from '../../../src/drive/block-device.ts';
import { DriveRegistry } from '../../../src/drive/registry.ts';
import { FuseMount, type FuseMountOptions } from '../../../src/export/fuse/mount.ts';
import { hasFusectl } from '../../../src/export/fuse/mountinfo.ts';
import { skip, skipWithoutFuse } from '../../support/tools.ts';

/** True, after a visible skip (in CI: a failure), where a mount pushes no pages, because a hung connection could not be ended. */
export async function skipWithoutPushes(t: Test): Promise<boolean> {
  if (skipWithoutFuse(t)) return true;
  if (process.geteuid?.() === 0 || (await hasFusectl())) return false;
  skip(t, 'root, or fusectl on /sys/fs/fuse/connections');
  return true;
}

/**
 * A mount with these drives; unmounted at the test's end. Not in a `t.testdir()`: tap removes that synchronously, which
 * would walk into the mount and wait for this very process.
 */
export async function mountDrives(
  t: Test,
  devices: readonly BlockDevice[],
  options: Partial<FuseMountOptions> = {},
): Promise<{ mount: FuseMount; registry: DriveRegistry }> {
  const registry = new DriveRegistry();
  for (const device of devices) registry.add(device);
  const parent = await mkdtemp(join(tmpdir(), 'lazydisk-fuse-'));
  const mount = await FuseMount.mount({ dir: join(parent, 'drives'), registry, ...options });
  t.teardown(async () => {
    await mount.unmount();
    await rm(parent, { recursive: true });
  });
  return { mount, registry };
}

export interface RunResult {
  /** Exit code; -1 if a signal or the time limit ended it. */
  readonly code: number;
  readonly stdout: Buffer;
  readonly stderr: string;
}

const RUN_TIMEOUT_MS = 60_000;

/** What test/native/asan.ts preloads is for our code only; other programs have bugs of their own under it. */
const TOOL_ENV = { ...process.env, LD_PRELOAD: '' };

/** Runs a shell script with `$1`… set to `args`; never rejects. */
export function sh(script: string, ...args: string[]): Promise<RunResult> {
  const limits = { maxBuffer: 64 * 1024 * 1024, timeout: RUN_TIMEOUT_MS };
  const options = { encoding: 'buffer', env: TOOL_ENV, ...limits } as const;
  return new Promise((resolve) => {
    const done = (error: ExecFileException | null, stdout: Buffer, stderr: Buffer) => {
      const code = error ? (typeof error.code === 'number' ? error.code : -1) : 0;
      resolve({ code, stdout, stderr: stderr.toString() });
    };
    execFile('/bin/sh', ['-c', script, 'sh', ...args], options, done);
  });
}
