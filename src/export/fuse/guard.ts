/**
 * A small process beside the daemon that ends the FUSE connection when the daemon dies. The kernel normally does so
 * when the descriptor closes. But the notifying thread may wait for a page's lock, which not even SIGKILL interrupts:
 * the lock is held by a read that the dead daemon will never answer, and the thread keeps the descriptor open. Killed
 * under load, about one daemon in ten hung like this, with all its readers. The guard is a shell that waits on a pipe.
 * When the daemon dies without writing to it, the guard sees the end of file and aborts the connection.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFile } from 'node:fs/promises';
import { MOUNT_SOURCE, MOUNT_TYPE, type Mount } from './mountinfo.ts';

// $1: the connection, $2: the mount point as mountinfo writes it, $3: type and source, $4: the mount point.
// Connection numbers are reused, so nothing is touched unless this daemon's mount (the source has its pid) is still
// there. Where sysfs offers no abort (fusectl is not mounted), a forced unmount does it, for root.
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

/** Ends connection `minor`: every waiting request gets an error. Does nothing where sysfs does not offer it. */
export async function abortConnection(minor: number): Promise<void> {
  await writeFile(`/sys/fs/fuse/connections/${minor}/abort`, '1').catch(() => {});
}

/** Watches over one mount until `release`. */
export class Guard {
  readonly #child: ChildProcess;

  constructor(mount: Mount) {
    const args = [`${mount.minor}`, mount.mountPointRaw, `${MOUNT_TYPE} ${MOUNT_SOURCE}`, mount.mountPoint];
    // In its own session, so that signals from the daemon's terminal do not end it first.
    this.#child = spawn('/bin/sh', ['-c', SCRIPT, 'lazydisk-guard', ...args], {
      stdio: ['pipe', 'ignore', 'ignore'],
      cwd: '/',
      detached: true,
    });
    // Everything else works without a guard, and the guard must not keep this process alive.
    this.#child.on('error', () => {});
    this.#child.stdin!.on('error', () => {});
    this.#child.unref();
    (this.#child.stdin as unknown as { unref(): void }).unref();
  }

  /** Called when the connection is closed: ends the guard. */
  async release(): Promise<void> {
    const { exitCode, signalCode, pid } = this.#child;
    if (pid === undefined || exitCode !== null || signalCode !== null) return;
    this.#child.ref();
    this.#child.stdin!.end('done\n');
    await once(this.#child, 'exit');
  }
}
