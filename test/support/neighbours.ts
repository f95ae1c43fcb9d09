/**
 * Sixteen well-behaved drives on one daemon, and bad neighbours (bad-neighbours.ts): one whose guest requests
 * everything at once, one whose objects hang, one with an object that cannot be read, and one whose objects are slow.
 * The reads of the sixteen are compared byte by byte and timed. The origin is a web server (troubled-store.ts).
 */
import type { ChildProcess } from 'node:child_process';
import { randomBytes, randomInt } from 'node:crypto';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Test } from 'tap';
import { ControlClient } from '../../src/daemon/client.ts';
import { CHUNK_BYTES } from '../../src/format/chunk-id.ts';
import { loadKeyFile } from '../../src/keys/key-file.ts';
import { openStore } from '../../src/store/open.ts';
import { type BadNeighbour, READ_BYTES, startBadNeighbours, TROUBLED } from './bad-neighbours.ts';
import { TestDaemon, type Workplace, workplace } from './daemon.ts';
import { NbdClient } from './nbd-client.ts';
import { putDisk } from './stored-disk.ts';
import { type ObjectTrouble, serveTroubledStore } from './troubled-store.ts';

const WELL_DRIVES = 16;
const WELL_IMAGES = 4;

export interface Measured {
  readonly reads: number;
  readonly wrong: number;
  /** The error of a failed read. */
  readonly errors: readonly string[];
  readonly p50Ms: number;
  readonly p99Ms: number;
}

export class Neighbourhood {
  readonly daemon: TestDaemon;
  readonly #place: Workplace;
  readonly #disks: ReadonlyMap<string, Buffer>;
  readonly #clients: NbdClient[] = [];
  #neighbours: ChildProcess | undefined;

  private constructor(daemon: TestDaemon, place: Workplace, disks: ReadonlyMap<string, Buffer>) {
    this.daemon = daemon;
    this.#place = place;
    this.#disks = disks;
  }

  /** All drives are attached, and none reads yet. */
  static async open(t: Test): Promise<Neighbourhood> {
    const place = await workplace(t);
    const disks = new Map<string, Buffer>();
    const troubles: Record<string, ObjectTrouble> = {};
    const store = await openStore(place.store, { create: true });
    const key = await loadKeyFile(place.key);
    const put = async (name: string, chunks: number) => {
      const disk = Buffer.alloc(chunks * CHUNK_BYTES);
      // Only a little of each chunk is random, so that it is small in the store and still unique.
      for (let n = 0; n < chunks; n++) randomBytes(8192).copy(disk, n * CHUNK_BYTES + 4096 * (n % 100));
      disks.set(name, disk);
      return putDisk(store, key, `${name}:1`, disk);
    };
    for (let n = 0; n < WELL_IMAGES; n++) await put(`well${n}`, 12);
    for (const [name, chunks] of Object.entries(TROUBLED)) {
      const { manifest } = await put(name, chunks);
      if (name === 'hostile') continue;
      // One object of the bad image is bad.
      const count = name === 'bad' ? 1 : chunks;
      for (let entry = 0; entry < count; entry++) troubles[manifest.ref(entry).id] = name as ObjectTrouble;
    }
    await store.close();

    const { url, server } = await serveTroubledStore(place.storeDir, troubles);
    t.teardown(() => server.kill());
    const flags = ['--cache-size', '10M', '--origin-timeout', '2s', '--read-timeout', '12s'];
    const daemon = await TestDaemon.start(t, { ...place, store: url }, flags);
    const neighbourhood = new Neighbourhood(daemon, place, disks);
    t.teardown(() => neighbourhood.#close());
    const client = new ControlClient(place.runDir);
    for (let n = 0; n < WELL_DRIVES; n++)
      await client.attach({ image: `well${n % WELL_IMAGES}:1`, name: `well-${n}` });
    for (const name of Object.keys(TROUBLED)) await client.attach({ image: `${name}:1`, name });
    return neighbourhood;
  }

  /** Each of the sixteen makes this many random reads, one after the other, with `pauseMs` between. */
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

  /** Starts the bad neighbours, in place of earlier ones. Resolves when each has been refused or is waiting. */
  async trouble(...kinds: readonly BadNeighbour[]): Promise<void> {
    this.#neighbours?.kill();
    this.#neighbours = await startBadNeighbours(this.#socket, kinds);
  }

  get #socket(): string {
    return join(this.#place.runDir, 'nbd.sock');
  }

  async #client(drive: string): Promise<NbdClient> {
    const client = await NbdClient.open({ path: this.#socket }, drive);
    this.#clients.push(client);
    return client;
  }

  #close(): void {
    this.#neighbours?.kill();
    for (const client of this.#clients) client.close();
  }
}
