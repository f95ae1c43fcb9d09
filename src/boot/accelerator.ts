/**
 * Finds out whether KVM runs a guest here by booting one. A device node that opens proves little: some hosts have it
 * and still refuse an ordinary kernel. The answer is kept until the machine reboots.
 */
import { randomBytes } from 'node:crypto';
import { access, constants, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { buildProbe } from './initramfs.ts';
import { cacheDirectory } from './kernel.ts';
import { type Accelerator, runQemu } from './qemu.ts';

/** Under KVM the guest prints its token within a second or two. */
const PROBE_TIMEOUT_MS = 8_000;

/** KVM if a probe with `kernel` boots, else TCG, QEMU's emulation. */
export async function findAccelerator(kernel: string): Promise<Accelerator> {
  try {
    await access('/dev/kvm', constants.R_OK | constants.W_OK);
  } catch {
    return 'tcg';
  }
  const bootId = (await readFile('/proc/sys/kernel/random/boot_id', 'utf8')).trim();
  const memory = join(cacheDirectory(), 'accelerator');
  const key = `${bootId} ${kernel} `;
  const known = await readFile(memory, 'utf8').catch(() => '');
  if (known.startsWith(key)) return known.slice(key.length) === 'kvm' ? 'kvm' : 'tcg';
  const found = (await boots(kernel)) ? 'kvm' : 'tcg';
  // The cache only saves time, so it is not an error if it cannot be written.
  await writeFile(memory, key + found).catch(() => {});
  return found;
}

async function boots(kernel: string): Promise<boolean> {
  const directory = await mkdtemp(join(tmpdir(), 'lazydisk-probe-'));
  const token = randomBytes(16).toString('hex');
  try {
    const initramfs = join(directory, 'initramfs');
    await writeFile(initramfs, await buildProbe(token));
    const onLine = (line: string) => line.includes(token);
    await runQemu({ accel: 'kvm', kernel, initramfs, memoryMb: 256, timeoutMs: PROBE_TIMEOUT_MS, onLine });
    return true;
  } catch {
    return false;
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}
