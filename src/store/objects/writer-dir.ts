/**
 * Each process that writes to a store has its own directory under the store's `tmp`. Its name identifies the process:
 * boot, PID namespace, process id and start time. So a later writer can tell the leftovers of a dead process from the
 * work of a live one, and remove only the leftovers.
 */
import { randomBytes } from 'node:crypto';
import { readdir, readFile, readlink, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';

/**
 * Directories from another machine or an earlier boot are not provably dead; they are removed after this long
 * unchanged.
 */
const FOREIGN_AGE_MS_MAX = 24 * 60 * 60 * 1000;

/** A new name: `HOST.PID.START.RANDOM`. */
export async function newWriterName(): Promise<string> {
  const start = (await startTimeOf(process.pid)) ?? '0';
  return `${await hostId()}.${process.pid}.${start}.${randomBytes(6).toString('hex')}`;
}

/**
 * Removes the directories in `tmpDir` whose writers are dead. Never fails: a later call removes what this one cannot.
 */
export async function removeDeadWriters(tmpDir: string): Promise<void> {
  const host = await hostId();
  for (const name of await readdir(tmpDir).catch(() => [])) {
    const path = join(tmpDir, name);
    const state = await stateOf(name, host);
    const alive = state === 'foreign' ? await changedLately(path) : state === 'alive';
    if (!alive) await rm(path, { recursive: true, force: true }).catch(() => undefined);
  }
}

/** State of the writer that made `name`, a writer's name with or without a suffix; foreign if it cannot be known. */
export async function writerState(name: string): Promise<'alive' | 'dead' | 'foreign'> {
  return stateOf(name, await hostId());
}

async function stateOf(name: string, host: string): Promise<'alive' | 'dead' | 'foreign'> {
  const [writerHost, pid, start] = name.split('.');
  if (writerHost !== host) return 'foreign';
  return (await isAlive(Number(pid), start)) ? 'alive' : 'dead';
}

async function isAlive(pid: number, start: string | undefined): Promise<boolean> {
  try {
    process.kill(pid, 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EPERM') return false;
  }
  // The id may have been reused since. Where /proc hides other users' processes, this cannot be checked.
  const startNow = await startTimeOf(pid);
  return startNow === undefined || startNow === start;
}

async function changedLately(path: string): Promise<boolean> {
  const { mtimeMs } = await stat(path).catch(() => ({ mtimeMs: Number.POSITIVE_INFINITY }));
  return mtimeMs > Date.now() - FOREIGN_AGE_MS_MAX;
}

/** Identifies one boot of one machine and one PID namespace, within which process ids are comparable. */
async function hostId(): Promise<string> {
  const boot = await readFile('/proc/sys/kernel/random/boot_id', 'latin1').catch(() => 'unknown');
  const namespace = await readlink('/proc/self/ns/pid').catch(() => '');
  return `${boot.trim()}-${namespace.replace(/\D/g, '')}`;
}

/** Start of process `pid` in clock ticks since boot, as text (field 22 of /proc/PID/stat), if it lives. */
async function startTimeOf(pid: number): Promise<string | undefined> {
  const line = await readFile(`/proc/${pid}/stat`, 'latin1').catch(() => undefined);
  // The second field is the command in parentheses and may hold spaces and parentheses itself.
  return line?.slice(line.lastIndexOf(')') + 2).split(' ')[19];
}
