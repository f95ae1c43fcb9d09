/**
 * The guest's initial root file system: busybox, a few modules and an init script, packed as a cpio archive in memory.
 * Its init mounts the drive read-only with a writable tmpfs over it, runs the command in it with the image's own
 * shell, and reports the result on the console, in lines that carry a token which no image can know.
 * Source of the format: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst ("newc").
 */
import { readFile } from 'node:fs/promises';
import { LazydiskError } from '../errors.ts';
import { type KernelModule, loadModules } from './modules.ts';

const MODULES = ['virtio_mmio', 'virtio_pci', 'virtio_blk', 'overlay'];
const BUSYBOX_PATHS = ['/bin/busybox', '/usr/bin/busybox', '/usr/lib/busybox/bin/busybox'];

interface Entry {
  readonly path: string;
  readonly mode: number;
  readonly bytes: Buffer;
}

/** A newc archive of `entries`, the same for the same entries. */
function packCpio(entries: readonly Entry[]): Buffer {
  const parts: Buffer[] = [];
  const trailer = { path: 'TRAILER!!!', mode: 0, bytes: Buffer.alloc(0) };
  [...entries, trailer].forEach(({ path, mode, bytes }, n) => {
    const name = Buffer.from(`${path}\0`, 'latin1');
    const links = (mode & 0o170000) === 0o040000 ? 2 : 1;
    const fields = [n + 1, mode, 0, 0, links, 0, bytes.length, 0, 0, 0, 0, name.length, 0];
    const header = `070701${fields.map((field) => field.toString(16).padStart(8, '0')).join('')}`;
    parts.push(padded(Buffer.concat([Buffer.from(header, 'latin1'), name])), padded(bytes));
  });
  return Buffer.concat(parts);
}

function padded(bytes: Buffer): Buffer {
  return Buffer.concat([bytes, Buffer.alloc((4 - (bytes.length & 3)) & 3)]);
}

/** What init runs in the guest, and what marks its lines. */
export interface GuestTask {
  /** Passed to `sh -c` in the image. */
  readonly command: string;
  /** Cannot be guessed; a line that starts with it comes from init. */
  readonly token: string;
}

/** What init prints after the token. */
export const USERLAND_MARK = 'userland';
export const EXIT_MARK = 'exit';
export const FAILED_MARK = 'failed';

/** Builds the archive. Throws UNAVAILABLE if this machine has no static busybox. */
export async function buildInitramfs(modulesDirectory: string | undefined, task: GuestTask): Promise<Buffer> {
  const busybox = await readBusybox();
  const modules = modulesDirectory ? await loadModules(modulesDirectory, MODULES) : [];
  const directory = (path: string): Entry => ({ path, mode: 0o040755, bytes: Buffer.alloc(0) });
  const file = (path: string, mode: number, bytes: Buffer): Entry => ({ path, mode: 0o100000 | mode, bytes });
  return packCpio([
    ...['bin', 'dev', 'proc', 'sys', 'modules', 'lower', 'upper', 'root'].map(directory),
    file('bin/busybox', 0o755, busybox),
    ...modules.map(({ name, bytes }) => file(`modules/${name}.ko`, 0o644, bytes)),
    file('command', 0o644, Buffer.from(`echo '${task.token} ${USERLAND_MARK}'\n${task.command}\n`, 'utf8')),
    file('init', 0o755, Buffer.from(initScript(task.token, modules), 'utf8')),
  ]);
}

async function readBusybox(): Promise<Buffer> {
  for (const path of BUSYBOX_PATHS) {
    const bytes = await readFile(path).catch(() => undefined);
    if (bytes && isStatic(bytes)) return bytes;
  }
  throw new LazydiskError('UNAVAILABLE', 'no static busybox for the guest: apt-get install busybox-static');
}

/** A dynamic ELF program has a header of type 3, PT_INTERP, which names its loader. */
function isStatic(program: Buffer): boolean {
  const at = Number(program.readBigUInt64LE(32));
  const count = program.readUInt16LE(56);
  for (let n = 0; n < count; n++)
    if (program.readUInt32LE(at + n * program.readUInt16LE(54)) === 3) return false;
  return true;
}

function initScript(token: string, modules: readonly KernelModule[]): string {
  return `#!/bin/busybox sh
b=/bin/busybox
# The console is slower than the shell: what it has not sent yet when the machine goes down is lost. Who waits for the
# line ends the machine, and at once.
leave() { echo; echo "${token} $*"; $b sleep 30; $b reboot -f; }
fail() { leave "${FAILED_MARK} $*"; }
$b mount -t devtmpfs dev /dev; $b mount -t proc proc /proc; $b mount -t sysfs sys /sys
${modules.map(({ name }) => `$b insmod /modules/${name}.ko`).join('\n')}
n=0
while [ ! -b /dev/vda ]; do
  n=$((n + 1)); [ $n -gt 200 ] && fail "the guest sees no drive"
  $b usleep 50000
done
$b mount -t ext4 -o ro /dev/vda /lower || fail "the drive cannot be mounted"
$b mount -t tmpfs tmpfs /upper; $b mkdir /upper/data /upper/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work overlay /root ||
  fail "the writable layer cannot be mounted"
$b mkdir -p /root/dev /root/proc /root/sys /root/tmp /root/run
$b mount -t devtmpfs dev /root/dev; $b mount -t proc proc /root/proc; $b mount -t sysfs sys /root/sys
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb
command=$($b cat /command)
$b chroot /root /bin/sh -c "$command"
leave "${EXIT_MARK} $?"
`;
}

/** A root that only prints the token, to find out whether a kernel boots at all. */
export async function buildProbe(token: string): Promise<Buffer> {
  const script = `#!/bin/busybox sh\necho "${token} ${EXIT_MARK} 0"\n/bin/busybox sleep 30\n/bin/busybox reboot -f\n`;
  return packCpio([
    { path: 'bin', mode: 0o040755, bytes: Buffer.alloc(0) },
    { path: 'dev', mode: 0o040755, bytes: Buffer.alloc(0) },
    { path: 'bin/busybox', mode: 0o100755, bytes: await readBusybox() },
    { path: 'init', mode: 0o100755, bytes: Buffer.from(script, 'utf8') },
  ]);
}
