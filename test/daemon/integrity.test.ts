/**
 * A minute of everything at once, with every byte compared: a tiny memory, a tiny disk cache whose file is damaged
 * meanwhile, a fleet with a node that stops and resumes, images that share chunks, drives that come and go, and guests
 * over NBD and FUSE, some of which are slow or disconnect midway. SOAK_SECONDS makes it longer.
 */
import { randomBytes, randomInt } from 'node:crypto';
import { closeSync, fstatSync, openSync, readSync, writeSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import type { DaemonStatus } from '../../src/daemon/api.ts';
import { ControlClient } from '../../src/daemon/client.ts';
import { CHUNK_BYTES } from '../../src/format/chunk-id.ts';
import { loadKeyFile } from '../../src/keys/key-file.ts';
import { openStore } from '../../src/store/open.ts';
import { TestDaemon, type Workplace, workplace } from '../support/daemon.ts';
import { Memcached } from '../support/memcached.ts';
import { NbdClient } from '../support/nbd-client.ts';
import { putDisk } from '../support/stored-disk.ts';
import { skipWithout } from '../support/tools.ts';

const SOAK_MS = Number(process.env.SOAK_SECONDS ?? 60) * 1000;
const CHUNKS = 24;
const IMAGES = ['a', 'b', 'c'] as const;

interface Soak {
  readonly place: Workplace;
  readonly client: ControlClient;
  readonly disks: ReadonlyMap<string, Buffer>;
  readonly nodes: readonly Memcached[];
  readonly endAt: number;
  /** Wrong bytes and failed reads. */
  readonly wrong: string[];
  nbdReads: number;
  fuseReads: number;
}

const diskOf = ({ disks }: Soak, drive: string) => disks.get(drive[0]!)!;
const pick = <T>(list: readonly T[]): T => list[randomInt(list.length)]!;

async function makeDisks(place: Workplace): Promise<Map<string, Buffer>> {
  const store = await openStore(place.store, { create: true });
  const key = await loadKeyFile(place.key);
  const shared = randomBytes(8 * CHUNK_BYTES);
  const disks = new Map<string, Buffer>();
  for (const name of IMAGES) {
    const disk = randomBytes(CHUNKS * CHUNK_BYTES);
    shared.copy(disk, randomInt(8) * CHUNK_BYTES);
    for (let n = 16; n < CHUNKS; n += 3) disk.fill(0, n * CHUNK_BYTES, (n + 1) * CHUNK_BYTES);
    disks.set(name, disk);
    await putDisk(store, key, `${name}:1`, disk);
  }
  await store.close();
  return disks;
}

/** Reads a drive that stays attached: no read may fail. */
async function steadyGuest(soak: Soak, drive: string): Promise<void> {
  const disk = diskOf(soak, drive);
  while (performance.now() < soak.endAt) {
    const where = { path: join(soak.place.runDir, 'nbd.sock') };
    const client = await NbdClient.open(where, drive, { structured: randomInt(2) === 1 });
    for (let round = randomInt(1, 8); round > 0 && performance.now() < soak.endAt; round--) {
      const asked = new Map<number, { offset: number; lengthBytes: number }>();
      for (let n = randomInt(1, 16); n > 0; n--) {
        const lengthBytes = pick([512, 4096, 40_000, 65_536, 600_000, 3 << 20]);
        const offset = randomInt(disk.length - lengthBytes);
        asked.set(client.send({ type: 0, offset, lengthBytes }), { offset, lengthBytes });
      }
      // Some disconnect with answers pending; others are slow to take them.
      if (randomInt(8) === 0) break;
      if (randomInt(4) === 0) await sleep(randomInt(50, 500));
      while (asked.size > 0) {
        const { cookie, error, text, data } = await client.answer();
        const { offset, lengthBytes } = asked.get(cookie)!;
        asked.delete(cookie);
        soak.nbdReads++;
        if (error) soak.wrong.push(`${drive}: ${lengthBytes} at ${offset} failed: ${text}`);
        else if (!data.equals(disk.subarray(offset, offset + lengthBytes)))
          soak.wrong.push(`${drive}: ${lengthBytes} at ${offset} over NBD`);
      }
    }
    client.close();
  }
}

async function fuseGuest(soak: Soak, drive: string): Promise<void> {
  const disk = diskOf(soak, drive);
  while (performance.now() < soak.endAt) {
    const file = await open(join(soak.place.runDir, 'drives', drive), 'r');
    for (let n = randomInt(1, 30); n > 0 && performance.now() < soak.endAt; n--) {
      const bytes = Buffer.alloc(pick([4096, 16_384, 131_072, 1 << 20]));
      const offset = randomInt(disk.length - bytes.length);
      const { bytesRead } = await file.read(bytes, 0, bytes.length, offset);
      soak.fuseReads++;
      if (bytesRead !== bytes.length || !bytes.equals(disk.subarray(offset, offset + bytesRead)))
        soak.wrong.push(`${drive}: ${bytes.length} at ${offset} over FUSE`);
    }
    await file.close();
  }
}

/** Attaches and detaches drives while they are read: each read returns the right bytes or fails. */
async function visitor(soak: Soak, number: number): Promise<void> {
  while (performance.now() < soak.endAt) {
    const drive = `${pick(IMAGES)}-visitor-${number}`;
    await soak.client.attach({ image: `${drive[0]}:1`, name: drive });
    const disk = diskOf(soak, drive);
    const client = await NbdClient.open({ path: join(soak.place.runDir, 'nbd.sock') }, drive);
    const reading = (async () => {
      for (;;) {
        const offset = randomInt(disk.length - 65_536);
        const { error, data } = await client.request({ type: 0, offset, lengthBytes: 65_536 });
        if (error) return;
        if (!data.equals(disk.subarray(offset, offset + 65_536)))
          soak.wrong.push(`${drive}: ${offset} over NBD`);
      }
    })().catch(() => {});
    await sleep(randomInt(50, 1500));
    await soak.client.detach(drive);
    await reading;
    client.close();
  }
}

/** Flips bits of the cache's file, one after another. */
async function vandal({ place, endAt }: Soak): Promise<void> {
  const fd = openSync(join(place.cache, 'chunks'), 'r+');
  const { size } = fstatSync(fd);
  const byte = Buffer.alloc(1);
  while (performance.now() < endAt) {
    const at = randomInt(4096, size);
    readSync(fd, byte, 0, 1, at);
    byte[0]! ^= 1 << randomInt(8);
    writeSync(fd, byte, 0, 1, at);
    await sleep(20);
  }
  closeSync(fd);
}

async function stopper({ nodes, endAt }: Soak): Promise<void> {
  while (performance.now() < endAt) {
    const node = pick(nodes);
    await node.pause();
    await sleep(randomInt(100, 3000));
    node.resume();
    await sleep(randomInt(100, 2000));
  }
}

async function setUp(t: Test): Promise<Soak & { daemon: TestDaemon }> {
  const place = await workplace(t);
  const disks = await makeDisks(place);
  const nodes = await Memcached.cluster(3, ['-I', '1m', '-m', '16']);
  t.teardown(async () => {
    for (const node of nodes) node.resume();
    await Promise.all(nodes.map((node) => node.kill()));
  });
  const url = `memcached://${nodes.map(({ port }) => `127.0.0.1:${port}`).join(',')}?k=2&m=1`;
  // The daemon's read timeout is far above what a loaded machine takes for a read.
  const times = ['--read-timeout', '100s', '--guest-timeout', '200s', '--origin-timeout', '20s'];
  const sizes = ['--memory', '8M', '--cache-size', '10M'];
  const flags = [...sizes, ...times, '--fleet', url, '--starts-max', '1000'];
  const daemon = await TestDaemon.start(t, place, flags);
  const client = new ControlClient(place.runDir);
  const soak = { place, client, disks, nodes, wrong: [], nbdReads: 0, fuseReads: 0 };
  return { ...soak, daemon, endAt: performance.now() + SOAK_MS };
}

t.test('every byte is right, whatever happens to caches, nodes and neighbours', async (t) => {
  if (skipWithout(t, 'memcached')) return;
  const soak = await setUp(t);
  for (const image of IMAGES) await soak.client.attach({ image: `${image}:1`, name: `${image}-steady` });
  const { fuse } = (await soak.client.status()) as DaemonStatus;
  const work = IMAGES.map((image) => steadyGuest(soak, `${image}-steady`));
  if (fuse) work.push(...IMAGES.map((image) => fuseGuest(soak, `${image}-steady`)));
  work.push(visitor(soak, 1), visitor(soak, 2), vandal(soak), stopper(soak));
  await Promise.all(work);
  t.same(soak.wrong, []);
  t.ok(soak.nbdReads > 50, `${soak.nbdReads} reads over NBD`);
  if (fuse) t.ok(soak.fuseReads > 50, `${soak.fuseReads} reads over FUSE`);
  const metrics = await soak.client.metrics();
  for (const tier of ['fleet', 'origin'])
    t.match(metrics, new RegExp(`^lazydisk_verify_failures_total\\{tier="${tier}"\\} 0$`, 'm'));
  t.same(
    soak.daemon.log.filter(({ level }) => level === 'fatal' || level === 'text'),
    [],
  );
});
