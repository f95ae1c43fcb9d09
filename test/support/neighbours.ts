/**
 * Sixteen well-behaved drives on one daemon, and neighbours that are not: one whose guest asks for everything at once,
 * one whose objects never answer, one with an object that cannot be read, and one whose objects are slow. What the sixteen
 * read is compared byte by byte and timed. The origin is a web server here, which knows which object belongs to whom.
 */
import { randomBytes, randomInt } from 'node:crypto';
import { readFileSync } from 'node:fs';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Test } from 'tap';
import { ControlClient } from '../../src/daemon/client.ts';
import { CHUNK_BYTES } from '../../src/format/chunk-id.ts';
import { loadKeyFile } from '../../src/keys/key-file.ts';
import { openStore } from '../../src/store/open.ts';
import { TestDaemon, type Workplace, workplace } from './daemon.ts';
import { NbdClient } from './nbd-client.ts';
import { putDisk } from './stored-disk.ts';

const WELL_DRIVES = 16;
const WELL_IMAGES = 4;
/** A read of a slow object takes so long. */
const SLOW_MS = 1_000;
const READ_BYTES = 4096;

export type Trouble = 'hostile' | 'hung' | 'bad' | 'slow';

/** Images by name, and how many chunks each has. */
const SIZES: Record<Trouble, number> = { hostile: 48, hung: 12, bad: 2, slow: 12 };

export interface Measured {
  readonly reads: number;
  readonly wrong: number;
  /** What a read that failed said. */
  readonly errors: readonly string[];
  readonly p50Ms: number;
  readonly p99Ms: number;
}

export class Neighbourhood {
  readonly daemon: TestDaemon;
  readonly #place: Workplace;
  readonly #disks: ReadonlyMap<string, Buffer>;
  readonly #clients: NbdClient[] = [];
  #isOver = false;

  private constructor(daemon: TestDaemon, place: Workplace, disks: ReadonlyMap<string, Buffer>) {
    this.daemon = daemon;
    this.#place = place;
    this.#disks = disks;
  }

  /** Everybody is attached, and nobody reads yet. */
  static async open(t: Test): Promise<Neighbourhood> {
    const place = await workplace(t);
    const disks = new Map<string, Buffer>();
    const troubles = new Map<string, Trouble>();
    const store = await openStore(place.store, { create: true });
    const key = await loadKeyFile(place.key);
    const put = async (name: string, chunks: number) => {
      const disk = Buffer.alloc(chunks * CHUNK_BYTES);
      // Little of a chunk is random, so that it is small where it is stored, and all of it is its own.
      for (let n = 0; n < chunks; n++) randomBytes(8192).copy(disk, n * CHUNK_BYTES + 4096 * (n % 100));
      disks.set(name, disk);
      return putDisk(store, key, `${name}:1`, disk);
    };
    for (let n = 0; n < WELL_IMAGES; n++) await put(`well${n}`, 12);
    for (const [name, chunks] of Object.entries(SIZES) as [Trouble, number][]) {
      const { manifest } = await put(name, chunks);
      // Of the bad image one object is bad.
      const count = name === 'bad' ? 1 : name === 'hostile' ? 0 : chunks;
      for (let entry = 0; entry < count; entry++) troubles.set(manifest.ref(entry).id, name);
    }
    await store.close();

    const url = await serveStore(t, place.storeDir, troubles);
    const flags = ['--cache-size', '10M', '--origin-timeout', '2s', '--read-timeout', '12s'];
    const daemon = await TestDaemon.start(t, { ...place, store: url }, flags);
    const neighbourhood = new Neighbourhood(daemon, place, disks);
    t.teardown(() => neighbourhood.#close());
    const client = new ControlClient(place.runDir);
    for (let n = 0; n < WELL_DRIVES; n++)
      await client.attach({ image: `well${n % WELL_IMAGES}:1`, name: `well-${n}` });
    for (const name of Object.keys(SIZES)) await client.attach({ image: `${name}:1`, name });
    return neighbourhood;
  }

  /** Each of the sixteen makes so many random reads, one after the other, with `pauseMs` between. */
  async measure(readsEach: number, pauseMs: number): Promise<Measured> {
    const times: number[] = [];
    const errors: string[] = [];
    let wrong = 0;
    const guest = async (n: number) => {
      const disk = this.#disks.get(`well${n % WELL_IMAGES}`)!;
      const client = await this.#client(`well-${n}`);
      for (let read = 0; read < readsEach; read++) {
        const offset = randomInt(disk.length / READ_BYTES) * READ_BYTES;
        const startedAt = performance.now();
        const answer = await client.request({ type: 0, offset, lengthBytes: READ_BYTES });
        times.push(performance.now() - startedAt);
        if (answer.error) errors.push(answer.text);
        else if (!answer.data.equals(disk.subarray(offset, offset + READ_BYTES))) wrong++;
        if (pauseMs > 0) await sleep(pauseMs);
      }
    };
    await Promise.all(Array.from({ length: WELL_DRIVES }, (_, n) => guest(n)));
    times.sort((a, b) => a - b);
    const at = (share: number) => times[Math.floor((times.length - 1) * share)]!;
    return { reads: times.length, wrong, errors, p50Ms: at(0.5), p99Ms: at(0.99) };
  }

  /** The neighbours begin, and go on until the test is over. Resolves when each has been refused or is waiting. */
  async trouble(): Promise<void> {
    // As many requests as a guest can have under way, over several connections.
    for (let n = 0; n < 4; n++) this.#hammer(await this.#client('hostile'), 'hostile', 64);
    this.#hammer(await this.#client('hung'), 'hung', 32);
    this.#hammer(await this.#client('slow'), 'slow', 32);
    const bad = await this.#client('bad');
    const first = await bad.request({ type: 0, offset: 0, lengthBytes: READ_BYTES });
    if (!first.error) throw new Error('the bad object was read');
    this.#hammer(bad, 'bad', 4);
  }

  #hammer(client: NbdClient, name: Trouble, depth: number): void {
    const chunks = name === 'bad' ? 1 : SIZES[name];
    const send = () => {
      const offset = randomInt(chunks) * CHUNK_BYTES + randomInt(16) * READ_BYTES;
      client.send({ type: 0, offset, lengthBytes: READ_BYTES });
    };
    for (let n = 0; n < depth; n++) send();
    const goOn = async () => {
      while (!this.#isOver) {
        await client.answer();
        // A guest that gets an error tries again, not as quickly as the wire allows.
        if (name !== 'hostile') await sleep(5);
        send();
      }
    };
    goOn().catch((error) => {
      if (!this.#isOver) throw error;
    });
  }

  async #client(drive: string): Promise<NbdClient> {
    const client = await NbdClient.open({ path: join(this.#place.runDir, 'nbd.sock') }, drive);
    this.#clients.push(client);
    return client;
  }

  #close(): void {
    this.#isOver = true;
    for (const client of this.#clients) client.close();
  }
}

/** The store over HTTP, each object as its trouble has it. */
async function serveStore(
  t: Test,
  storeDir: string,
  troubles: ReadonlyMap<string, Trouble>,
): Promise<string> {
  const answer = async (path: string, response: http.ServerResponse) => {
    const trouble = troubles.get(path.split('/').at(-1)!);
    if (trouble === 'hung') return;
    if (trouble === 'slow') await sleep(SLOW_MS, undefined, { ref: false });
    if (trouble === 'bad') {
      response.writeHead(500).end();
      return;
    }
    let bytes: Buffer;
    try {
      bytes = readFileSync(join(storeDir, path));
    } catch {
      response.writeHead(404).end();
      return;
    }
    response.writeHead(200, { 'content-length': bytes.length }).end(bytes);
  };
  const server = http.createServer((request, response) => {
    void answer(decodeURIComponent(request.url!).replace(/^\/store/, ''), response);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.teardown(() => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}/store`;
}
