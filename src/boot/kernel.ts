/**
 * The guest's kernel: Debian's cloud kernel, unpacked from its package into a cache and not installed. apt downloads
 * it once; afterwards neither apt nor the network is needed.
 */
import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, readdir, rename, rm } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { errorText, LazydiskError } from '../errors.ts';

const run = promisify(execFile);
const DOWNLOAD_TIMEOUT_MS = 300_000;

/** Debian's name for each architecture that a guest can have, which is always this machine's. */
const DEBIAN_ARCH: Partial<Record<NodeJS.Architecture, string>> = { x64: 'amd64' };

export interface GuestKernel {
  /** File for QEMU's -kernel. */
  readonly image: string;
  /** Directory below which the kernel's modules lie; undefined for a kernel that must have everything built in. */
  readonly modules: string | undefined;
}

/** Where downloads and probes are kept: $XDG_CACHE_HOME/lazydisk or ~/.cache/lazydisk. */
export function cacheDirectory(): string {
  return join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'lazydisk');
}

/**
 * Debian's cloud kernel, from the cache or, the first time, from apt. Throws UNSUPPORTED on an architecture without
 * one, UNAVAILABLE if apt cannot download it.
 */
export async function debianKernel(cache: string = cacheDirectory()): Promise<GuestKernel> {
  const arch = DEBIAN_ARCH[process.arch];
  if (!arch)
    throw new LazydiskError('UNSUPPORTED', `no microVM kernel is known for ${process.arch}: give --kernel`);
  const place = join(cache, `kernel-${arch}`);
  const known = await findKernel(place);
  if (known) return known;
  await mkdir(cache, { recursive: true });
  const temporary = await mkdtemp(join(cache, 'kernel-download-'));
  try {
    const options = { cwd: temporary, timeout: DOWNLOAD_TIMEOUT_MS };
    const meta = `linux-image-cloud-${arch}`;
    const { stdout } = await run('apt-cache', ['depends', '--important', meta], options);
    const name = /Depends: (linux-image-\S+)/.exec(stdout)?.[1];
    if (!name) throw new Error(`apt does not know ${meta}: run apt-get update`);
    // As root, apt warns that its own user cannot write here, and downloads all the same.
    await run('apt-get', ['download', name], options);
    const [deb] = (await readdir(temporary)).filter((file) => file.endsWith('.deb'));
    if (!deb) throw new Error(`apt-get download ${name} left no package`);
    await run('dpkg-deb', ['-x', deb, 'root'], options);
    // The first process wins; the content is the same.
    await rename(join(temporary, 'root'), place).catch(() => {});
  } catch (error) {
    throw new LazydiskError('UNAVAILABLE', `cannot get Debian's cloud kernel: ${errorText(error)}`, {
      cause: error,
    });
  } finally {
    await rm(temporary, { recursive: true, force: true });
  }
  const kernel = await findKernel(place);
  if (!kernel) throw new LazydiskError('UNAVAILABLE', `${place} holds no kernel`);
  return kernel;
}

async function findKernel(place: string): Promise<GuestKernel | undefined> {
  const files = await readdir(join(place, 'boot')).catch(() => []);
  const image = files.find((file) => file.startsWith('vmlinuz-'));
  if (!image) return undefined;
  const version = image.slice('vmlinuz-'.length);
  return { image: join(place, 'boot', image), modules: join(place, 'lib/modules', version) };
}
