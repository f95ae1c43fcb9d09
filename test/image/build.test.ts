/**
 * Builds, end to end: the store holds the disk that the writer lays out, equal content is stored once, and a build that
 * fails, is killed, or races another leaves the store consistent.
 */
import { spawn, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readdirSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { LazydiskError } from '../../src/errors.ts';
import { CHUNK_BYTES } from '../../src/format/chunk-id.ts';
import { TenantKey } from '../../src/format/keys.ts';
import { Manifest } from '../../src/format/manifest.ts';
import { type BuildOptions, type BuildProgress, buildImage } from '../../src/image/build.ts';
import { exportImage } from '../../src/image/export.ts';
import { layoutExt4 } from '../../src/image/ext4/writer.ts';
import { flatten } from '../../src/image/flatten.ts';
import { openSource } from '../../src/image/source/open-source.ts';
import { newKeyFile } from '../../src/keys/key-file.ts';
import { KeyRing } from '../../src/keys/key-ring.ts';
import { loadImage } from '../../src/store/image.ts';
import type { RootStore } from '../../src/store/roots/root-store.ts';
import type { Store, StoreWriter } from '../../src/store/store.ts';
import { openDirStore, rootDir } from '../support/dir-store.ts';
import { makeOciLayout, type TarEntrySpec } from '../support/oci.ts';
import { skipWithout } from '../support/tools.ts';

/** Small enough to be held in memory. */
const DISK_BYTES = 64 * 2 ** 20;

const CHILD = join(import.meta.dirname, 'build-child.ts');

/** Text that compresses and differs by `seed`, `sizeBytes` of it. */
function text(seed: string, sizeBytes: number): Buffer {
  const lines: string[] = [];
  for (let at = 0, length = 0; length < sizeBytes; at++) {
    lines.push(`${seed} line ${at} ${(at * 2654435761) % 4294967296}\n`);
    length += lines.at(-1)!.length;
  }
  return Buffer.from(lines.join('')).subarray(0, sizeBytes);
}

const BASE: TarEntrySpec[] = [
  { name: 'bin/' },
  { name: 'bin/sh', body: text('shell', 900_000), mode: 0o755 },
  ...Array.from({ length: 60 }, (_, at) => ({ name: `etc/file-${at}`, body: text(`file ${at}`, 20_000) })),
  { name: 'big', body: text('big', 5_000_000) },
];
const TOP: TarEntrySpec[] = [
  { name: 'app/' },
  { name: 'app/main', body: text('main', 700_000) },
  { name: '.wh.big' },
];

interface Setup {
  readonly dir: string;
  readonly store: RootStore;
  readonly storeDir: string;
  readonly key: TenantKey;
  build(spec: string, overrides?: Partial<BuildOptions>): ReturnType<typeof buildImage>;
}

async function setUp(t: Test): Promise<Setup> {
  const dir = t.testdir();
  const storeDir = join(dir, 'store');
  await (await openDirStore(storeDir)).close();
  const store = await openDirStore(storeDir);
  t.teardown(() => store.close());
  const key = await newKeyFile(join(dir, 'key'));
  const build: Setup['build'] = async (spec, overrides = {}) => {
    const source = await openSource(spec);
    try {
      return await buildImage({ source, store, key, name: 'app', ...overrides });
    } finally {
      await source.close();
    }
  };
  return { dir, store, storeDir, key, build };
}

/** The store's files as another process sees them, except temporary ones. */
function filesIn(storeDir: string, folder: string): string[] {
  return readdirSync(join(rootDir(storeDir), folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => entry.name)
    .sort();
}

/** Returns `store` with some methods of its writers replaced; `methods` receives the original writer. */
function withMethods(store: Store, methods: (writer: StoreWriter) => Partial<StoreWriter>): Store {
  const writer = async (wantedChunks?: number): Promise<StoreWriter> => {
    const inner = await store.writer(wantedChunks);
    const replaced = methods(inner);
    return new Proxy(inner, {
      get(target, name: keyof StoreWriter) {
        const value = replaced[name] ?? target[name];
        return typeof value === 'function' ? value.bind(target) : value;
      },
    });
  };
  return new Proxy(store, {
    get(target, name: keyof Store) {
      if (name === 'writer') return writer;
      const value = target[name];
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
}

t.test('the store holds the disk that the writer lays out, chunk for chunk', async (t) => {
  const { dir, store, storeDir, key, build } = await setUp(t);
  const made = await makeOciLayout(join(dir, 'oci'), {
    layers: [BASE, TOP],
    config: { Entrypoint: ['/bin/sh'], Env: ['A=b'], User: '7', WorkingDir: '/app', Labels: { x: 'y' } },
  });
  const spec = `oci:${join(dir, 'oci')}`;
  const report = await build(spec, { sizeBytes: DISK_BYTES });

  // The same disk, assembled in memory without sealing.
  const source = await openSource(spec);
  const data: Buffer[] = [];
  const tree = await flatten(source, async (chunk, bytes) => {
    data[chunk] = Buffer.from(bytes);
  });
  const layout = await layoutExt4(tree, { sizeBytes: DISK_BYTES, contentDigest: source.digest });
  const disk = Buffer.alloc(layout.diskBytes);
  await layout.emit(async (chunk, bytes) => void bytes.copy(disk, chunk * CHUNK_BYTES));
  for (const [chunk, bytes] of data.entries()) {
    if ((tree.liveChunks[chunk >> 3]! >> (chunk & 7)) & 1)
      bytes.copy(disk, (layout.metadataChunks + chunk) * CHUNK_BYTES);
  }
  await source.close();

  const image = await loadImage(store, 'app', KeyRing.of(key));
  const out = join(dir, 'disk.img');
  await exportImage({ image, store, out });
  t.ok(readFileSync(out).equals(disk));
  if (!skipWithout(t, 'e2fsck'))
    t.equal(spawnSync('e2fsck', ['-fn', out]).status, 0, 'e2fsck finds no errors');

  const { manifest } = image;
  const hidden =
    data.length - tree.liveChunks.reduce((sum, byte) => sum + byte.toString(2).replaceAll('0', '').length, 0);
  t.ok(hidden >= 9, 'the file that the second layer hides left unused chunks');
  t.match(report, {
    name: 'app:latest',
    digest: image.digest,
    diskBytes: layout.diskBytes,
    storedChunks: manifest.storedChunks,
    dataBytes: manifest.storedChunks * CHUNK_BYTES,
    layers: 2,
  });
  t.equal(report.newChunks, filesIn(storeDir, 'chunks').length);
  t.equal(report.newChunks + report.reusedChunks, manifest.storedChunks + hidden);
  t.match(manifest.metadata, {
    os: 'linux',
    config: {
      entrypoint: ['/bin/sh'],
      cmd: [],
      env: ['A=b'],
      user: '7',
      workingDir: '/app',
      labels: { x: 'y' },
    },
    source: { digest: made.manifestDigest },
    layers: made.layerDigests.map((digest) => ({ digest })),
  });
  const [base, top] = manifest.metadata.layers;
  t.equal(base!.firstChunk, layout.metadataChunks);
  t.equal(top!.firstChunk, base!.firstChunk + base!.chunks);
  t.equal(base!.chunks + top!.chunks, data.length);
});

t.test('one image has one digest, whatever the timing, the tenant of the domain, or the store', async (t) => {
  const { dir, store, key, build } = await setUp(t);
  await makeOciLayout(join(dir, 'oci'), { layers: [BASE, TOP] });
  const spec = `oci:${join(dir, 'oci')}`;
  const { digest } = await build(spec);
  const slow = withMethods(store, () => ({
    hasChunk: async () => {
      await new Promise((resolve) => setTimeout(resolve, Math.random() * 20));
      return false;
    },
  }));
  t.equal((await build(spec, { store: slow })).digest, digest);
  const sharing = TenantKey.generate({ sharing: key });
  t.equal((await build(spec, { key: sharing })).digest, digest);
  t.equal((await loadImage(store, 'app', KeyRing.of(sharing))).digest, digest);
  t.equal((await loadImage(store, 'app', KeyRing.of(key))).digest, digest, 'both tenants can open it');
  t.not((await build(spec, { key: TenantKey.generate() })).digest, digest, 'another domain');
  t.not((await build(spec, { sizeBytes: 2 * 2 ** 30 })).digest, digest, 'another size');
});

t.test('a second build stores nothing new, and a similar image only what differs', async (t) => {
  const { dir, store, storeDir, build } = await setUp(t);
  await makeOciLayout(join(dir, 'one'), { layers: [BASE] });
  await makeOciLayout(join(dir, 'two'), { layers: [BASE, TOP] });
  const first = await build(`oci:${join(dir, 'one')}`);
  t.ok(first.newBytes > 500_000);
  const again = await build(`oci:${join(dir, 'one')}`, { name: 'again' });
  t.match(again, { newChunks: 0, newBytes: 0, digest: first.digest, sealedBytes: first.sealedBytes });
  const files = filesIn(storeDir, 'chunks').length;
  const second = await build(`oci:${join(dir, 'two')}`, { name: 'two' });
  t.equal(filesIn(storeDir, 'chunks').length, files + second.newChunks);
  t.ok(second.newChunks <= 8, `${second.newChunks} chunks for a layer of two and the file system around it`);
  t.same(
    (await store.listReferences()).map(({ name }) => name),
    ['again:latest', 'app:latest', 'two:latest'],
  );
});

t.test(
  'a build keeps a manifest that its key opens, and replaces one that its key does not open',
  async (t) => {
    const { dir, storeDir, key, build } = await setUp(t);
    await makeOciLayout(join(dir, 'one'), { layers: [BASE] });
    const { digest } = await build(`oci:${join(dir, 'one')}`);
    const file = join(rootDir(storeDir), 'manifests/sha256', digest.slice('sha256:'.length), key.id);
    const first = readFileSync(file);
    await build(`oci:${join(dir, 'one')}`, { name: 'again' });
    t.ok(readFileSync(file).equals(first));
    for (const at of [100, first.length - 40]) {
      const bad = Buffer.from(first);
      bad[at]! ^= 1;
      writeFileSync(file, bad);
      await build(`oci:${join(dir, 'one')}`);
      t.equal(Manifest.open(readFileSync(file), key).digest, digest);
    }
  },
);

t.test('progress advances through the phases', async (t) => {
  const { dir, build } = await setUp(t);
  await makeOciLayout(join(dir, 'oci'), { layers: [BASE, TOP] });
  const told: BuildProgress[] = [];
  const report = await build(`oci:${join(dir, 'oci')}`, { onProgress: (progress) => told.push(progress) });
  t.same([...new Set(told.map(({ phase }) => phase))], ['layers', 'filesystem', 'commit']);
  for (const counter of ['inputBytes', 'newChunks', 'layer'] as const) {
    const values = told.map((progress) => progress[counter]);
    t.same(
      values,
      values.toSorted((a, b) => a - b),
      counter,
    );
  }
  t.match(told.at(-1), { layer: 2, layers: 2, newChunks: report.newChunks, newBytes: report.newBytes });
  t.match(told.at(-1), { inputBytes: report.inputBytes, totalInputBytes: report.inputBytes });
});

t.test('a failed build leaves every name unchanged', async (t) => {
  const { dir, store, storeDir, key, build } = await setUp(t);
  await makeOciLayout(join(dir, 'good'), { layers: [BASE] });
  const before = await build(`oci:${join(dir, 'good')}`);
  const made = await makeOciLayout(join(dir, 'bad'), {
    layers: [[{ name: 'x', body: randomBytes(3_000_000) }], TOP],
  });
  const good = `oci:${join(dir, 'good')}`;
  const bad = `oci:${join(dir, 'bad')}`;
  const full = async () => {
    throw new LazydiskError('NO_SPACE', 'the store is full');
  };
  const abortedIn = (phase: BuildProgress['phase']): Partial<BuildOptions> => {
    const controller = new AbortController();
    return { signal: controller.signal, onProgress: (told) => told.phase === phase && controller.abort() };
  };
  type Stop = [string, () => Promise<unknown>];
  const stops: Record<string, Stop> = {
    'an invalid name': ['USAGE', () => build(good, { name: '../x' })],
    'a disk that is too small': ['NO_SPACE', () => build(good, { sizeBytes: 4 * CHUNK_BYTES })],
    'chunks that cannot be stored': [
      'NO_SPACE',
      () => build(bad, { store: withMethods(store, () => ({ putChunk: full })) }),
    ],
    'a manifest that cannot be stored': [
      'NO_SPACE',
      () => build(bad, { store: withMethods(store, () => ({ putManifest: full })) }),
    ],
    ...Object.fromEntries(
      (['layers', 'filesystem', 'commit'] as const).map((phase) => [
        `an abort in phase ${phase}`,
        ['ABORTED', () => build(bad, abortedIn(phase))] satisfies Stop,
      ]),
    ),
    'an abort before it starts': ['ABORTED', () => build(bad, { signal: AbortSignal.abort() })],
    'a truncated layer': [
      'CORRUPT',
      () => {
        truncateSync(join(dir, 'bad/blobs/sha256', made.layerDigests[0]!.slice(7)), 1_500_000);
        return build(bad);
      },
    ],
  };
  for (const [name, [code, attempt]] of Object.entries(stops)) {
    await t.rejects(attempt(), { code }, name);
    t.match(
      await store.listReferences(),
      [{ name: 'app:latest', digest: before.digest }],
      `${name}: names are unchanged`,
    );
    t.equal((await store.listReferences()).length, 1);
    t.same(filesIn(storeDir, 'manifests'), [key.id], `${name}: no manifest`);
  }
  await t.rejects(build(bad), { message: new RegExp(made.layerDigests[0]!) }, 'the error names the layer');
});

t.test('a build that is killed and run again stores only what is missing', async (t) => {
  const { dir, store, storeDir, key, build } = await setUp(t);
  const layers = [[{ name: 'noise', body: randomBytes(40 * CHUNK_BYTES) }], TOP];
  await makeOciLayout(join(dir, 'oci'), { layers, compression: 'none' });
  const spec = `oci:${join(dir, 'oci')}`;
  const child = spawn(process.execPath, [CHILD, spec, storeDir, join(dir, 'key'), 'app', '12'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const [said] = (await once(child.stdout, 'data')) as [Buffer];
  t.match(String(said), 'hanging');
  child.kill('SIGKILL');
  await once(child, 'exit');

  const kept = filesIn(storeDir, 'chunks');
  t.ok(kept.length >= 12, `${kept.length} chunks were kept`);
  t.ok(kept.length < 43);
  t.same(await store.listReferences(), []);
  t.equal(readdirSync(join(storeDir, 'tmp')).length, 1, 'the killed build left its temporary directory');

  const put: string[] = [];
  const counting = withMethods(store, (writer) => ({
    putChunk: (id, sealed) => {
      put.push(id);
      return writer.putChunk(id, sealed);
    },
  }));
  const report = await build(spec, { store: counting });
  t.equal(put.length, report.newChunks);
  t.same([...put, ...kept].sort(), filesIn(storeDir, 'chunks'), 'each missing chunk was stored once');
  await exportImage({
    image: await loadImage(store, 'app', KeyRing.of(key)),
    store,
    out: join(dir, 'disk.img'),
  });
  t.equal(statSync(join(dir, 'disk.img')).size, report.diskBytes);
  await store.close();
  t.same(readdirSync(join(storeDir, 'tmp')), [], 'the next writer removed it');
});

t.test('concurrent builds into one store do not interfere', async (t) => {
  const { dir, store, storeDir, key } = await setUp(t);
  await makeOciLayout(join(dir, 'one'), { layers: [BASE] });
  await makeOciLayout(join(dir, 'two'), { layers: [BASE, TOP] });
  const child = (image: string, name: string) => {
    const words = [CHILD, `oci:${join(dir, image)}`, storeDir, join(dir, 'key'), name, 'Infinity'];
    return once(spawn(process.execPath, words, { stdio: ['ignore', 'ignore', 'inherit'] }), 'exit');
  };
  const exits = await Promise.all([child('one', 'a'), child('two', 'b'), child('one', 'c')]);
  t.same(exits, [
    [0, null],
    [0, null],
    [0, null],
  ]);
  const [a, b, c] = await Promise.all(['a', 'b', 'c'].map((name) => loadImage(store, name, KeyRing.of(key))));
  t.equal(a!.digest, c!.digest);
  t.not(a!.digest, b!.digest);
  for (const image of [a!, b!]) await exportImage({ image, store, out: join(dir, 'disk.img') });
  t.same(readdirSync(join(storeDir, 'tmp')), []);
});

t.test('the store holds no plaintext', async (t) => {
  const { dir, storeDir, build } = await setUp(t);
  const canary = 'CANARY-e1b2d3-yellow';
  await makeOciLayout(join(dir, 'oci'), {
    layers: [
      [
        { name: canary, body: 'found by its name' },
        { name: 'small', body: `${canary} in a file` },
        {
          name: 'big',
          body: Buffer.concat([randomBytes(CHUNK_BYTES), Buffer.from(canary), randomBytes(CHUNK_BYTES)]),
        },
        { name: 'link', type: 'symlink', target: `/${canary}` },
      ],
    ],
    config: { Env: [`SECRET=${canary}`], Labels: { [canary]: canary } },
  });
  await build(`oci:${join(dir, 'oci')}`);
  let files = 0;
  for (const entry of readdirSync(storeDir, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue;
    files++;
    const bytes = readFileSync(join(entry.parentPath, entry.name));
    if (bytes.includes(canary)) t.fail(`${entry.name} contains it`);
  }
  t.ok(files >= 5, `${files} files were searched`);
  const image = readFileSync(join(dir, 'oci/index.json'), 'utf8');
  t.notOk(image.includes(canary));
});
