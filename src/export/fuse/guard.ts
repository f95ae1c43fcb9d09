/**
 * A small process beside the daemon that ends the FUSE connection when the daemon dies. Mostly the kernel does so
 * itself when the descriptor closes. But the notifying thread may wait for a page's lock, which is not
 * interruptible, not even by SIGKILL: the lock is held by a read that the dead daemon will never answer, and the
 * thread keeps the descriptor open. Killed under load, about one daemon in ten hung so, and all its readers. The
 * guard, a shell that waits on a pipe, gets an end-of-file instead of a word and breaks the circle from outside.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFile } from 'node:fs/promises';
import { MOUNT_SOURCE, MOUNT_TYPE, type Mount } from './mountinfo.ts';

// $1: the connection, $2: the mount point as mountinfo writes it, $3: type and source, $4: the mount point.
// Connection numbers are used again, so nothing is touched unless this daemon's mount (the source has its pid) is
// still there. Where sysfs offers no abort (fusectl is not mounted), a forced unmount does it, for root.
const SCRIPT = `
trap '' HUP INT TERM
read -r word && exit 0
while read -r _ _ device _ point rest; do
  [ "$device" = "0:$1" ] && [ "$point" = "$2" ] || continue
  case "$rest" in *" - $3 "*) ;; *) continue ;; esac
  echo 1 > "/sys/fs/fuse/connections/$1/abort" || umount -f -l "$4"
  exit
done < /proc/self/mountinfo
`;

/** Ends connection `minor`: every request that waits gets an error. Does nothing where sysfs does not offer it. */
export async function abortConnection(minor: number): Promise<void> {
  await writeFile(`/sys/fs/fuse/connections/${minor}/abort`, '1').catch(() => {});
}

/** Watches over one mount, from its making until `release`. */
export class Guard {
  readonly #child: ChildProcess;

  constructor(mount: Mount) {
    const args = [`${mount.minor}`, mount.mountPointRaw, `${MOUNT_TYPE} ${MOUNT_SOURCE}`, mount.mountPoint];
    // In a session of its own, so that what a terminal sends to the daemon does not end it first.
    this.#child = spawn('/bin/sh', ['-c', SCRIPT, 'lazydisk-guard', ...args], {
      stdio: ['pipe', 'ignore', 'ignore'],
      cwd: '/',
      detached: true,
    });
    // Without a guard all works but that; and the guard is no reason for this process to go on.
    this.#child.on('error', () => {});
    this.#child.stdin!.on('error', () => {});
    this.#child.unref();
    (this.#child.stdin as unknown as { unref(): void }).unref();
  }

  /** The connection is closed: the guard goes. */
  async release(): Promise<void> {
    const { exitCode, signalCode, pid } = this.#child;
    if (pid === undefined || exitCode !== null || signalCode !== null) return;
    this.#child.ref();
    this.#child.stdin!.end('done\n');
    await once(this.#child, 'exit');
  }
}
