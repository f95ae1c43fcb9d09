/**
 * `npm run demo`: the whole way once, with the commands that a user would type. A container image made of Debian's
 * packages is built from a registry into a store, a daemon serves it, a microVM boots from it over FUSE and NBD, cold and warm, and a
 * table shows what that took. Everything but the boots is kept in .demo, so a second run is quick.
 */
import { mkdir, mkdtemp, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { debianKernel } from '../boot/kernel.ts';
import type { Booted } from '../cli/boot.ts';
import { ControlClient } from '../daemon/client.ts';
import { errorText } from '../errors.ts';
import type { BuildReport } from '../image/build.ts';
import { formatSize } from '../units.ts';
import { bootTable, type Run } from './boot-table.ts';
import { lazydiskJson, ServedDaemon } from './command-line.ts';
import { makeDebianImage } from './debian-image.ts';
import { LocalRegistry } from './local-registry.ts';
import { Steps } from './steps.ts';

const IMAGE = 'debian';
const KEPT = '.demo';
const COMMAND = 'head -n 1 /etc/os-release; python3 --version';

async function main(): Promise<void> {
  process.chdir(join(import.meta.dirname, '../..'));
  // debootstrap and chroot are in these, which a user's PATH often lacks.
  process.env.PATH += ':/usr/sbin:/sbin';
  await mkdir(KEPT, { recursive: true });
  // Socket paths must be short, and the checkout may be deep.
  const scratch = await mkdtemp(join(tmpdir(), 'lazydisk-demo-'));
  const steps = new Steps(process.stderr);
  try {
    await steps.run('a container image from Debian packages', (tell) => makeDebianImage(`${KEPT}/oci`, tell));
    await steps.run("a kernel for the guest, Debian's", () => debianKernel());
    const key = `${KEPT}/key`;
    if (!(await stat(key).catch(() => undefined))) await lazydiskJson(steps, ['key', 'new', key]);
    const store = ['--store', `${KEPT}/store`, '--key', key];
    const built = await buildFromRegistry(steps, store);
    steps.note(
      `${built.layers} layers of ${formatSize(built.inputBytes)} → a disk of ${formatSize(built.diskBytes)}, ${built.storedChunks} chunks ` +
        `of it stored in ${formatSize(built.sealedBytes)}, new: ${formatSize(built.newBytes)}`,
    );

    const runs: Run[] = [];
    for (const via of ['fuse', 'nbd'] as const) {
      const runDir = join(scratch, via);
      const cache = ['--cache', join(runDir, 'cache'), '--cache-size', '1G'];
      for (const state of ['cold', 'warm'] as const) {
        const daemon = await ServedDaemon.start(steps, ['--run-dir', runDir, ...store, ...cache]);
        try {
          if (via === 'fuse' && !(await hasFuse(steps, runDir))) break;
          const words = ['boot', IMAGE, '--run-dir', runDir, '--via', via, '--command', COMMAND];
          const booted = await lazydiskJson<Booted>(steps, words);
          for (const line of booted.console.trim().split('\n')) steps.note(`guest: ${line.trimEnd()}`);
          if (booted.exitCode !== 0) throw new Error("the guest's command failed");
          runs.push({ via, state, booted });
        } finally {
          await daemon.stop();
        }
      }
    }
    process.stdout.write(`\n${bootTable(built, runs)}`);
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
}

/** The image as users have it, in a registry; this one runs for as long as the build. */
async function buildFromRegistry(steps: Steps, store: readonly string[]): Promise<BuildReport> {
  await mkdir(`${KEPT}/registry`, { recursive: true });
  const registry = await LocalRegistry.start(`${KEPT}/registry`);
  try {
    const name = `docker://${registry.host}/${IMAGE}`;
    await steps.run(`the image in a registry, as ${name}`, () =>
      registry.push(`${KEPT}/oci`, IMAGE, 'latest'),
    );
    return await lazydiskJson<BuildReport>(steps, ['build', name, '--name', IMAGE, ...store]);
  } finally {
    await registry.stop();
  }
}

/** Where the user may not mount, the demo goes on without FUSE. */
async function hasFuse(steps: Steps, runDir: string): Promise<boolean> {
  const { fuse, fuseProblem } = await new ControlClient(runDir).status();
  if (fuse === null) steps.note(`no FUSE here, so NBD only: ${fuseProblem}`);
  return fuse !== null;
}

try {
  await main();
} catch (error) {
  process.stderr.write(`demo: ${errorText(error)}\n`);
  process.exitCode = 1;
}
