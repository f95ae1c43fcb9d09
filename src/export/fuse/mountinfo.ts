/**
 * What is mounted, read from /proc/self/mountinfo and never from the mount itself: a stat of a mount whose daemon is
 * dead fails, and one of a mount whose daemon hangs never returns.
 */
import { readFile } from 'node:fs/promises';

/** The file system type of our mounts, so that we never touch any others. */
export const MOUNT_TYPE = 'fuse.lazydisk';
/** What `df` shows as the device of this process's mounts; it distinguishes one daemon's mount from the next one's. */
export const MOUNT_SOURCE = `lazydisk:${process.pid}`;

export interface Mount {
  readonly mountPoint: string;
  /** As in the file, with octal escapes. */
  readonly mountPointRaw: string;
  readonly type: string;
  readonly source: string;
  /** Device number; for FUSE, `minor` is the connection's name under /sys/fs/fuse/connections. */
  readonly minor: number;
}

/** The mounts in a mountinfo file (proc(5)), read as latin1, in order; malformed lines are skipped. */
export function parseMountinfo(text: string): Mount[] {
  const mounts: Mount[] = [];
  for (const line of text.split('\n')) {
    const fields = line.split(' ');
    // Optional fields end with a lone dash; the type is the first field after it.
    const dash = fields.indexOf('-', 6);
    const [device, mountPoint, type, source] = [fields[2], fields[4], fields[dash + 1], fields[dash + 2]];
    const minor = Number(device?.split(':')[1]);
    if (dash < 0 || !mountPoint || !type || !source || !Number.isInteger(minor)) continue;
    const place = { mountPoint: unescapeOctal(mountPoint), mountPointRaw: fromLatin1(mountPoint) };
    mounts.push({ ...place, type, source, minor });
  }
  return mounts;
}

/** All mounts of this process. */
async function readMounts(): Promise<Mount[]> {
  // latin1, because the escapes encode bytes and a path is bytes.
  return parseMountinfo(await readFile('/proc/self/mountinfo', 'latin1'));
}

/** Whether sysfs offers the connections of FUSE mounts (fusectl), through which their owner can end them. */
export async function hasFusectl(): Promise<boolean> {
  return (await readMounts()).some(({ type }) => type === 'fusectl');
}

/** Our mounts at exactly `dir`, an absolute path without symbolic links; the topmost is the last. */
export async function ourMountsAt(dir: string): Promise<Mount[]> {
  return (await readMounts()).filter((mount) => mount.mountPoint === dir && mount.type === MOUNT_TYPE);
}

/** Space, tab, newline and backslash are written as \ooo, byte by byte. */
function unescapeOctal(text: string): string {
  const bytes = text.replace(/\\([0-7]{3})/g, (_, o: string) => String.fromCharCode(Number.parseInt(o, 8)));
  return fromLatin1(bytes);
}

/** A path is bytes, mostly UTF-8. */
function fromLatin1(bytes: string): string {
  return Buffer.from(bytes, 'latin1').toString();
}
