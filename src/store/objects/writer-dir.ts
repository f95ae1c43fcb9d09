/**
 * Each process that writes to a store has a directory of its own under the store's `tmp`, whose name says who it
 * is: boot, PID namespace, process id and the process's start time. So a later writer can tell the leftovers of a dead
 * process from the work of a live one, and take away only the former.
 */
import { randomBytes } from 'node:crypto';
import { readdir, readFile, readlink, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';

/** What another machine or an earlier boot left is not provably dead; it goes after this long without a change. */
const FOREIGN_AGE_MS_MAX = 24 * 60 * 60 * 1000;

/** A new name: `HOST.PID.START.RANDOM`. */
export async function newWriterName(): Promise<string> {
  const start = (await startTimeOf(process.pid)) ?? '0';
  return `${await hostId()}.${process.pid}.${start}.${randomBytes(6).toString('hex')}`;
}

/** Removes the directories in `tmpDir` whose writers are dead. Never fails: what cannot go now goes another time. */
export async function removeDeadWriters(tmpDir: string): Promise<void> {
  const host = await hostId();
  for (const name of await readdir(tmpDir).catch(() => [])) {
    const path = join(tmpDir, name);
    const state = await stateOf(name, host);
    const alive = state === 'foreign' ? await changedLately(path) : state === 'alive';
    if (!alive) await rm(path, { recursive: true, force: true }).catch(() => undefined);
  }
}

/** Of the writer that made `name`, a writer's name with or without something behind it; foreign: cannot be known. */
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
  // The id may have gone to another process since. Where /proc hides the processes of others, there is no telling.
  const startNow = await startTimeOf(pid);
  return startNow === undefined || startNow === start;
}

async function changedLately(path: string): Promise<boolean> {
  const { mtimeMs } = await stat(path).catch(() => ({ mtimeMs: Number.POSITIVE_INFINITY }));
  return mtimeMs > Date.now() - FOREIGN_AGE_MS_MAX;
}

/** One boot of one machine, seen from one PID namespace: where process ids mean the same. */
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
