/**
 * A daemon that dies, however and whenever, leaves nothing hanging: readers get errors, the process goes, and its mount
 * can be removed and made again.
 */
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { cleanStaleMount } from '../../../src/export/fuse/mount.ts';
import { CHUNK_BYTES } from '../../../src/format/chunk-id.ts';
import { skipWithoutFuse } from '../../support/tools.ts';
import { type DaemonSpec, startDaemon } from './daemon-child.ts';
import { sh, skipWithoutPushes } from './mounted.ts';

const content = { sizeBytes: 64 * CHUNK_BYTES, seed: 7 };
const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

async function setUp(t: Test, spec: Omit<DaemonSpec, 'dir'>) {
  const parent = await mkdtemp(join(tmpdir(), 'lazydisk-death-'));
  const dir = join(parent, 'drives');
  const { child } = await startDaemon({ dir, ...spec });
  t.teardown(async () => {
    child.kill('SIGKILL');
    await cleanStaleMount(dir);
    await rm(parent, { recursive: true });
  });
  return { dir, child, drive: join(dir, 'drive') };
}

/** The states of a process's threads, such as "SSD". */
function threadStates({ pid }: ChildProcess): string {
  try {
    const stats = readdirSync(`/proc/${pid}/task`).map((id) =>
      readFileSync(`/proc/${pid}/task/${id}/stat`, 'latin1'),
    );
    return stats.map((stat) => stat.slice(stat.lastIndexOf(')') + 2)[0]).join('');
  } catch {
    return '';
  }
}

async function ended(child: ChildProcess): Promise<void> {
  if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
}

for (const signal of ['SIGKILL', 'SIGINT'] as const) {
  t.test(`a daemon ended by ${signal} under load leaves no reader hanging`, async (t) => {
    if (skipWithoutFuse(t, 'fio')) return;
    const { dir, child, drive } = await setUp(t, { content, pushChunks: true });
    const load = `fio --name=load --filename="$1" --readonly --rw=randread --bs=4k --ioengine=psync --thread
      --numjobs=4 --invalidate=0 --norandommap --runtime=3 --time_based --minimal`.replaceAll('\n', ' ');
    const reader = sh(`cd "$2" && exec ${load}`, drive, tmpdir());
    await pause(300);
    const waiting = sh('while dd if="$1" iflag=direct bs=4k count=1 status=none; do :; done', drive);
    await pause(50);
    child.kill(signal);
    await ended(child);
    await waiting;
    // A dead mount is left, or none if the guard had to remove it to end the connection.
    await cleanStaleMount(dir);
    t.equal(await cleanStaleMount(dir), false, 'nothing is left');
    t.equal((await sh('ls "$1"', dir)).stdout.toString(), '', 'an empty directory');
    // Its readers may run on the page cache for their three seconds; none of them hangs.
    t.not((await reader).code, -1);

    const second = await startDaemon({ dir, content, pushChunks: true });
    t.equal((await sh('cat "$1" | wc -c', drive)).stdout.toString().trim(), `${content.sizeBytes}`);
    t.match(await second.stop(), /unmounted/);
  });
}

t.test('killed while a push waits for a page that only the daemon can unlock', async (t) => {
  if (await skipWithoutPushes(t)) return;
  const { child, drive } = await setUp(t, { content, pushChunks: true, stallAt: 100 * 4096 });
  // This read, which never finishes, has locked page 100.
  const stalled = sh('dd if="$1" bs=4k skip=100 count=1 status=none', drive);
  await pause(200);
  // This one makes the daemon push the chunk: its thread now waits for page 100, uninterruptibly.
  t.equal((await sh('dd if="$1" bs=4k count=1 status=none | wc -c', drive)).stdout.toString().trim(), '4096');
  while (!threadStates(child).includes('D')) await pause(10);
  child.kill('SIGKILL');
  await ended(child);
  // The waiting store may have come first with the right bytes.
  t.not((await stalled).code, -1, 'its reader exits');
});

t.test('unmounted while a push waits for a page', async (t) => {
  if (await skipWithoutPushes(t)) return;
  const { child, drive } = await setUp(t, { content, pushChunks: true, stallAt: 100 * 4096 });
  const stalled = sh('dd if="$1" bs=4k skip=100 count=1 status=none', drive);
  await pause(200);
  await sh('dd if="$1" bs=4k count=1 status=none', drive);
  while (!threadStates(child).includes('D')) await pause(10);
  child.kill('SIGTERM');
  await ended(child);
  t.equal(child.exitCode, 0);
  t.not((await stalled).code, -1, 'its reader exits');
});
