/**
 * Makes a real container image from Debian's packages, as an OCI layout of two layers: the base system that
 * debootstrap makes, and Python installed on top of it. Root uses a chroot, other users fakechroot.
 */
import { createHash } from 'node:crypto';
import { createWriteStream } from 'node:fs';
import { mkdir, rename, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGzip } from 'node:zlib';
import { runProgram, startProgram } from './run-program.ts';

const PACKAGES = ['python3'];
/** For a machine whose apt has no Debian mirror. */
const DEFAULT_MIRROR = { uri: 'http://deb.debian.org/debian', suite: 'bookworm' };

const TAR = [
  '--format=posix',
  '--pax-option=delete=atime,delete=ctime',
  '--numeric-owner',
  '--xattrs',
  '--sort=name',
];
/** Files that belong to this machine and not to the image, and files that apt downloads again. */
const LEFT_OUT = [
  ...['dev', 'proc', 'sys/*', 'run/*', 'tmp/*', 'etc/hostname', 'etc/resolv.conf'],
  ...['var/cache/apt/*', 'var/lib/apt/lists/*', 'var/log/*'],
];

type OnLine = (line: string) => void;

interface Descriptor {
  readonly mediaType: string;
  readonly digest: string;
  readonly size: number;
}

interface Layer {
  readonly descriptor: Descriptor;
  /** Digest of the layer before compression. */
  readonly diffId: string;
}

/** How to run commands that must be root, or believe that they are. */
interface Host {
  readonly variant: string;
  command(words: readonly string[]): { program: string; args: string[] };
}

/** Makes the layout in `directory` unless it is there; `onLine` is called with lines of progress. */
export async function makeDebianImage(directory: string, onLine: OnLine): Promise<void> {
  if (await isThere(join(directory, 'index.json'))) return;
  const work = `${directory}.work`;
  await rm(work, { recursive: true, force: true });
  const layout = join(work, 'layout');
  const root = join(work, 'root');
  await mkdir(join(layout, 'blobs/sha256'), { recursive: true });
  const host = process.getuid?.() === 0 ? asRoot : asAnybody(join(work, 'owners'));
  const run = (words: readonly string[]) => {
    const { program, args } = host.command(words);
    return runProgram(program, args, { onLine });
  };

  const { uri, suite } = await findMirror();
  await writeFile(join(work, 'owners'), '');
  await run(['debootstrap', `--variant=${host.variant}`, suite, root, uri]);
  onLine('packing the base system');
  const base = await packLayer(layout, host, root, ['.']);

  // Files that change from here on make the second layer. File systems stamp them with a coarse clock.
  const since = join(work, 'since');
  await writeFile(since, '');
  await new Promise((done) => setTimeout(done, 50));
  const install = ['apt-get', 'install', '-y', '-q', '--no-install-recommends', ...PACKAGES];
  await run(['chroot', root, ...install]);
  onLine('packing the packages');
  const changed = await runProgram('find', [root, '-mindepth', '1', '-cnewer', since, '-printf', './%P\\0']);
  await writeFile(join(root, 'tmp/changed'), changed);
  const app = await packLayer(layout, host, root, ['--no-recursion', '--null', '-T', '/tmp/changed']);

  await writeDocuments(layout, [base, app]);
  await rename(layout, directory);
  await rm(work, { recursive: true, force: true });
}

const asRoot: Host = {
  variant: 'minbase',
  command: ([program, ...args]) => ({ program: program!, args }),
};

/** `owners` keeps owners and device nodes from one command to the next. */
function asAnybody(owners: string): Host {
  return {
    variant: 'fakechroot',
    command: (words) => ({
      program: 'fakechroot',
      args: ['fakeroot', '-i', owners, '-s', owners, '--', ...words],
    }),
  };
}

/** The mirror that this machine's own Debian comes from. */
async function findMirror(): Promise<{ uri: string; suite: string }> {
  const format = ['--format', '$(REPO_URI) $(CODENAME) $(ORIGIN)', 'Created-By: Packages'];
  const targets = await runProgram('apt-get', ['indextargets', ...format]).catch(() => '');
  for (const line of targets.split('\n')) {
    const [uri, suite, origin] = line.split(' ');
    if (uri && suite && origin === 'Debian' && !suite.includes('-')) return { uri, suite };
  }
  return DEFAULT_MIRROR;
}

/** `files` of `root`, as tar sees them from inside, as a blob of the layout. */
async function packLayer(layout: string, host: Host, root: string, files: readonly string[]): Promise<Layer> {
  const leaveOut = LEFT_OUT.map((path) => `--exclude=./${path}`);
  const { program, args } = host.command([
    'chroot',
    root,
    'tar',
    '-C',
    '/',
    ...TAR,
    ...leaveOut,
    '-cf',
    '-',
    ...files,
  ]);
  const tar = startProgram(program, args);
  const temporary = join(layout, 'layer');
  const diffId = createHash('sha256');
  const digest = createHash('sha256');
  let sizeBytes = 0;
  const plain = new PassThrough().on('data', (bytes: Buffer) => void diffId.update(bytes));
  const packed = new PassThrough().on('data', (bytes: Buffer) => {
    digest.update(bytes);
    sizeBytes += bytes.length;
  });
  await pipeline(tar.output, plain, createGzip({ level: 6 }), packed, createWriteStream(temporary));
  await tar.ended;
  const hex = digest.digest('hex');
  await rename(temporary, join(layout, 'blobs/sha256', hex));
  return {
    descriptor: {
      mediaType: 'application/vnd.oci.image.layer.v1.tar+gzip',
      digest: `sha256:${hex}`,
      size: sizeBytes,
    },
    diffId: `sha256:${diffId.digest('hex')}`,
  };
}

/** Configuration, manifest and index, as the OCI image specification has them. */
async function writeDocuments(layout: string, layers: readonly Layer[]): Promise<void> {
  const platform = { architecture: process.arch === 'x64' ? 'amd64' : process.arch, os: 'linux' };
  const configuration = {
    ...platform,
    config: { Env: ['PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'], Cmd: ['python3'] },
    rootfs: { type: 'layers', diff_ids: layers.map(({ diffId }) => diffId) },
  };
  const config = await putDocument(layout, configuration, 'application/vnd.oci.image.config.v1+json');
  const mediaType = 'application/vnd.oci.image.manifest.v1+json';
  const descriptors = layers.map(({ descriptor }) => descriptor);
  const document = { schemaVersion: 2, mediaType, config, layers: descriptors };
  const manifest = await putDocument(layout, document, mediaType);
  await writeFile(join(layout, 'oci-layout'), '{"imageLayoutVersion":"1.0.0"}\n');
  const annotations = { 'org.opencontainers.image.ref.name': 'latest' };
  const index = { schemaVersion: 2, manifests: [{ ...manifest, platform, annotations }] };
  await writeFile(join(layout, 'index.json'), `${JSON.stringify(index)}\n`);
}

async function putDocument(layout: string, document: unknown, mediaType: string): Promise<Descriptor> {
  const bytes = Buffer.from(JSON.stringify(document));
  const hex = createHash('sha256').update(bytes).digest('hex');
  await writeFile(join(layout, 'blobs/sha256', hex), bytes);
  return { mediaType, digest: `sha256:${hex}`, size: bytes.length };
}

function isThere(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}
