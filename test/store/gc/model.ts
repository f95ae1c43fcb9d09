/**
 * The model that checks garbage collection: builders, taggers, drives and collectors on many simulated machines, all
 * running the real code on one simulated store, stopped for any time or killed at any moment; and a judge who sees the
 * store as it is.
 *
 * Breaking one of two rules causes harm so rarely that ten runs showed nothing, so each has a direct test: that a
 * writer checks the store's time again after its name is written (pause.test.ts, "a name that a stopped writer gives to
 * what was deleted meanwhile"), and that a purge checks reads and leases again while it deletes (purge.test.ts, "a read
 * ends a deletion"; leases.test.ts, "what is leased while a purge deletes").
 */
import { createHash } from 'node:crypto';
import { LazydiskError } from '../../../src/errors.ts';
import type { ChunkId } from '../../../src/format/chunk-id.ts';
import type { ImageDigest } from '../../../src/format/image-digest.ts';
import { TenantKey } from '../../../src/format/keys.ts';
import { sealManifest } from '../../../src/format/manifest-seal.ts';
import { purge } from '../../../src/store/gc/purge.ts';
import { rotate } from '../../../src/store/gc/rotate.ts';
import { sweep } from '../../../src/store/gc/sweep.ts';
import { LeaseKeeper } from '../../../src/store/lease-keeper.ts';
import { LEASES_PREFIX, leaseKey, meaningOf, rootNumberOf } from '../../../src/store/roots/layout.ts';
import type { StoreParts } from '../../../src/store/roots/parts.ts';
import type { StorePolicy } from '../../../src/store/roots/policy.ts';
import { RootStore } from '../../../src/store/roots/root-store.ts';
import { viewOf } from '../../../src/store/roots/view.ts';
import type { StoreWriter } from '../../../src/store/store.ts';
import { SimObjects, SimStorage, Simulation } from '../../support/sim-store.ts';

/** Times in simulated milliseconds, in the smallest proportions that the policy allows. */
export const POLICY: StorePolicy = { viewMs: 60, settleMs: 30, buildMs: 400, graceMs: 580, retentionMs: 580 };

const TIMES = { latencyMs: 4, lagMs: 30 };
const NAMES = ['a', 'b', 'c', 'd'];
/** Distinct chunk contents of images; few, so that images share them and garbage comes back to life. */
const CONTENTS = 7;

const key = TenantKey.generate();

export interface ModelOptions {
  readonly seed: number;
  readonly compareAndSet?: boolean;
  /** Stops some processes for longer than any period of the policy, and makes some of their changes hang as long. */
  readonly pauses?: boolean;
  /** Replaces the store's own parts for collectors, to see whether the judge finds the fault. */
  readonly bend?: (parts: StoreParts) => StoreParts;
}

export interface ModelResult {
  /** What the judge found wrong; empty if nothing. */
  readonly faults: readonly string[];
  readonly done: Readonly<Record<string, number>>;
}

export class Model {
  readonly #options: ModelOptions;
  readonly #sim: Simulation;
  readonly #storage = new SimStorage();
  readonly #chunksOf = new Map<ImageDigest, ChunkId[]>();
  readonly #bytesOf = new Map<ChunkId, Buffer>();
  readonly #ops: { name: string; digest: ImageDigest | null; startMs: number; endMs: number }[] = [];
  readonly #faults: string[] = [];
  #hosts = 0;
  readonly #done: Record<string, number> = {};
  /** When all stopped processes have resumed and all hanging changes are done. */
  #untilMs = 0;

  constructor(options: ModelOptions) {
    this.#options = options;
    this.#sim = new Simulation(options.seed);
  }

  /** A few thousand milliseconds of everything at once, then quiet, and a collection to the end. */
  async run(): Promise<ModelResult> {
    const first = this.#user();
    await this.#finish(RootStore.open(first, { create: true, policy: POLICY, clock: first.clock }));
    const busyMs = (this.#options.pauses ? 9 : 6) * POLICY.retentionMs;
    const endMs = this.#sim.nowMs + busyMs;
    this.#untilMs = endMs;
    this.#actor('build', endMs, 3, (store) => this.#build(store));
    this.#actor('tag', endMs, 2, (store) => this.#tag(store));
    this.#actor('remove', endMs, 1, (store) => this.#remove(store));
    this.#actor('attach', endMs, 3, (store, user) => this.#attach(store, user));
    // While roots rotate all the time, sweeps never finish; so in half of the runs they rotate rarely.
    const turnMs = this.#options.seed % 2 ? 500 : 2.5 * POLICY.retentionMs;
    this.#actor('rotate', endMs, 1, (store) => rotate(this.#collector(store)), turnMs);
    this.#actor('sweep', endMs, 2, (store) => sweep(this.#collector(store)), 200);
    this.#actor('purge', endMs, 2, (store) => purge(this.#collector(store)), 200);
    if (this.#options.seed % 3 === 0) void this.#hostile(endMs);
    let steps = 0;
    await this.#sim.run(endMs + 3 * POLICY.retentionMs, () => {
      if (++steps % 40 === 0) this.#judge();
    });
    this.#judge();
    await this.#collectAll();
    return { faults: this.#faults, done: this.#done };
  }

  #user(): SimObjects {
    const hung = this.#options.pauses ? { hung: { share: 0.002, untilMs: this.#untilMs } } : {};
    return new SimObjects(
      this.#sim,
      this.#storage,
      { ...TIMES, ...hung },
      this.#options.compareAndSet ?? true,
    );
  }

  #collector(store: RootStore): StoreParts {
    return this.#options.bend ? this.#options.bend(store.parts) : store.parts;
  }

  /** `count` machines that repeat their work, each time as a new process; some processes are killed meanwhile. */
  #actor(
    what: string,
    endMs: number,
    count: number,
    work: (store: RootStore, user: SimObjects) => Promise<unknown>,
    pauseMs = 100,
  ): void {
    const { random } = this.#sim;
    const machine = async (): Promise<void> => {
      await this.#sim.delay(random.next() * pauseMs);
      while (this.#sim.nowMs < endMs) {
        const user = this.#user();
        const process = RootStore.open(user, { clock: user.clock }).then((store) => work(store, user));
        const ended = process.then(
          (report) => this.#ended(what, report),
          (error) => this.#failed(what, error),
        );
        // One in five dies in the middle of its work.
        let lifeMs = random.next() < 0.2 ? random.next() * POLICY.buildMs : Number.POSITIVE_INFINITY;
        if (this.#options.pauses && random.next() < 0.2) lifeMs = await this.#stop(what, user, ended);
        if (Number.isFinite(lifeMs)) {
          await Promise.race([ended, this.#sim.delay(lifeMs)]);
          user.isDead = true;
        } else await ended;
        await this.#sim.delay(random.next() * pauseMs);
      }
    };
    for (let n = 0; n < count; n++) void machine();
  }

  /** An attacker with a daemon's credentials, who puts objects that nobody else may read wherever possible. */
  async #hostile(endMs: number): Promise<void> {
    const { random } = this.#sim;
    while (this.#sim.nowMs < endMs) {
      await this.#sim.delay(random.next() * 100);
      const leases = [...this.#storage.objects.keys()].filter((at) => at.startsWith(LEASES_PREFIX));
      const images = [...this.#chunksOf.keys()];
      const any = `sha256:${random.below(1000).toString(16).padStart(64, '0')}` as ImageDigest;
      const image = images.length > 0 && random.next() < 0.2 ? random.pick(images) : any;
      const keys = [leaseKey(image, 'hostile'), `${LEASES_PREFIX}host-${random.below(20)}`, 'hosts/other'];
      if (leases.length > 0) keys.push(random.pick(leases));
      const at = random.pick(keys);
      this.#storage.set(at, Buffer.from('anything'), this.#sim.nowMs, random.next() * TIMES.lagMs);
      this.#storage.refused.add(at);
      this.#count('hostile objects');
    }
  }

  /** Stops a process in the middle of its work. Resolves to how long it lives after it has resumed. */
  #stop(what: string, user: SimObjects, ended: Promise<void>): Promise<number> {
    const { random } = this.#sim;
    const { promise, resolve } = Promise.withResolvers<number>();
    const stop = () => {
      const untilMs = Math.min(this.#sim.nowMs + random.next() * 4 * POLICY.retentionMs, this.#untilMs);
      // A drive that takes an old view for a new one may read what is gone, so it must know how long it was stopped.
      user.stop(untilMs, what === 'attach' || random.next() < 0.5);
      this.#count('stopped');
      const afterMs = random.next() < 0.3 ? random.next() * POLICY.settleMs : Number.POSITIVE_INFINITY;
      resolve(untilMs - this.#sim.nowMs + afterMs);
    };
    // Just before something is written or deleted, where it matters most, or anywhere.
    if (random.next() < 0.7) user.beforeChange(random.below(12), stop);
    else void this.#sim.delay(random.next() * POLICY.buildMs).then(stop);
    return Promise.race([ended.then(() => Number.POSITIVE_INFINITY), promise]);
  }

  #ended(what: string, report: unknown): void {
    this.#count(`${what} done`);
    if (typeof report !== 'object' || report === null) return;
    for (const [field, value] of Object.entries(report))
      if (typeof value === 'number' && value > 0) this.#count(`${what} with ${field}`);
  }

  /** Refusals are fine; missing or broken objects and violated expectations of the code are not. */
  #failed(what: string, error: unknown): void {
    const code = error instanceof LazydiskError ? error.code : 'none';
    this.#count(`${what} ${code}`);
    const isRefusal = ['BUSY', 'TIMEOUT', 'ABORTED', 'NOT_FOUND'].includes(code);
    if (!isRefusal || String(error).includes('no manifest')) this.#faults.push(`${what}: ${error}`);
  }

  #count(what: string): void {
    this.#done[what] = (this.#done[what] ?? 0) + 1;
  }

  async #build(store: RootStore): Promise<void> {
    const { random } = this.#sim;
    const writer = await store.writer();
    const contents = [...Array(CONTENTS).keys()].filter(() => random.next() < 0.4);
    const pauseMs = (random.next() * POLICY.buildMs * 1.1) / (contents.length + 2);
    const ids: ChunkId[] = [];
    for (const content of contents) {
      const id = createHash('sha256').update(`${content} in epoch ${writer.epoch}`).digest('hex') as ChunkId;
      const bytes = Buffer.from(`chunk ${id}`);
      this.#bytesOf.set(id, bytes);
      if (!(await writer.hasChunk(id, bytes.length))) await writer.putChunk(id, bytes);
      ids.push(id);
      await this.#pause(store, random.next() * 2 * pauseMs);
    }
    const entries = ids.map((id, index) => {
      return { index, ref: { id, key: Buffer.alloc(32), sealedBytes: this.#bytesOf.get(id)!.length } };
    });
    const { digest, bytes } = sealManifest({
      key,
      saltEpoch: writer.epoch,
      diskBytes: CONTENTS * 512 * 1024,
      entries,
      writerVersion: 'model/1',
      encoderVersion: 'model/1',
      metadata: {
        architecture: 'amd64',
        os: 'linux',
        config: { entrypoint: [], cmd: [], env: [], user: '', workingDir: '', labels: {} },
        source: { digest: 'sha256:0' },
        layers: [],
      },
    });
    this.#chunksOf.set(digest, ids);
    await writer.putManifest(digest, key.id, bytes);
    await this.#pause(store, random.next() * pauseMs);
    await this.#set(writer, random.pick(NAMES), digest);
  }

  /** Sets or removes a name and remembers when: of two consecutive changes, the later one must stay. */
  async #set(writer: StoreWriter, name: string, digest: ImageDigest | null): Promise<void> {
    const op = { name, digest, startMs: this.#sim.nowMs, endMs: Number.POSITIVE_INFINITY };
    this.#ops.push(op);
    try {
      await (digest === null ? writer.removeReference(name) : writer.putReference(name, digest));
      op.endMs = this.#sim.nowMs;
    } catch (error) {
      // Refused before anything was written, or undone; after any other failure it may have been written.
      if (
        error instanceof LazydiskError &&
        error.code === 'NOT_FOUND' &&
        !error.message.includes('set it again')
      )
        this.#ops.splice(this.#ops.indexOf(op), 1);
      throw error;
    }
  }

  async #tag(store: RootStore): Promise<void> {
    const { random } = this.#sim;
    const writer = await store.writer();
    // A named image, or any image that ever existed, which may be garbage.
    const digests = [...this.#chunksOf.keys()];
    const found = await store.getReference(random.pick(NAMES));
    const digest = found && random.next() < 0.5 ? found.digest : digests[random.below(digests.length)];
    if (digest) await this.#set(writer, random.pick(NAMES), digest);
  }

  async #remove(store: RootStore): Promise<void> {
    await this.#set(await store.writer(), this.#sim.random.pick(NAMES), null);
  }

  /**
   * A drive: it can read what its name means when it is attached, or its digest, for as long as it is attached; if
   * daemons are stopped, and so renew no lease, only for the retention.
   */
  async #attach(store: RootStore, user: SimObjects): Promise<void> {
    const { random } = this.#sim;
    const { pauses } = this.#options;
    const keeper = new LeaseKeeper(store.parts, { host: `host-${this.#hosts++}` });
    const name = random.pick(NAMES);
    let digest: ImageDigest | undefined;
    if (!pauses && random.next() < 0.3) {
      // Any image that ever existed; if it is garbage, it is refused.
      const digests = [...this.#chunksOf.keys()];
      digest = digests[random.below(digests.length)];
      if (digest) await keeper.hold(digest);
    } else {
      digest = (await store.getReference(name))?.digest;
      if (digest && this.#isLate(name, digest)) return;
      if (digest) keeper.add(digest);
    }
    if (!digest) return;
    // A drive attached for long rarely reads from the store: the rest comes from memory, disk or fleet.
    const isLong = !pauses && random.next() < 0.5;
    const lifeMs = random.next() * POLICY.retentionMs * (isLong ? 5 : 1);
    if (lifeMs > 2 * POLICY.retentionMs + POLICY.graceMs) this.#count('drives longer than any period');
    const endMs = Math.min(this.#sim.nowMs + lifeMs, this.#untilMs + POLICY.retentionMs);
    const pauseMs = isLong ? 8 * POLICY.retentionMs : 150;
    await this.#drive(store, user, digest, endMs, pauseMs).finally(() => keeper.close());
  }

  async #drive(
    store: RootStore,
    user: SimObjects,
    digest: ImageDigest,
    endMs: number,
    pauseMs: number,
  ): Promise<void> {
    const { random } = this.#sim;
    const ids = this.#chunksOf.get(digest)!;
    const isOver = () => this.#sim.nowMs >= endMs || user.isDead;
    while (ids.length > 0 && !isOver()) {
      if (!(await store.getManifest(digest, key.id)) && !isOver())
        this.#faults.push(`drive: no manifest of ${digest} at ${this.#sim.nowMs}`);
      const id = random.pick(ids);
      const askedMs = this.#sim.nowMs;
      const bytes = await store.getChunk(id);
      this.#count('chunks read');
      if (!bytes?.equals(this.#bytesOf.get(id)!) && !isOver())
        this.#faults.push(
          `drive: chunk ${id.slice(0, 8)}, asked at ${askedMs}, is ${bytes ? 'wrong' : 'gone'}`,
        );
      // Read once more just before the end.
      await this.#pause(store, Math.max(1, Math.min(random.next() * pauseMs, endMs - this.#sim.nowMs - 20)));
    }
  }

  #pause(store: RootStore, ms: number): Promise<void> {
    return store.parts.clock.sleep(ms);
  }

  /** Whatever a name means now must exist, completely. */
  #judge(): void {
    const { objects } = this.#storage;
    const markers = [...objects].map(([at, { modifiedMs }]) => ({ key: at, sizeBytes: 0, modifiedMs }));
    const view = viewOf(markers.filter(({ key: at }) => at.startsWith('state/')));
    const named = new Map<string, ImageDigest | null>();
    const roots = [view.active, ...(view.draining ? [view.draining] : [])];
    for (const { path } of roots) {
      for (const kind of ['references', 'inherited']) {
        for (const [at, { bytes }] of objects) {
          const meaning = meaningOf(at);
          if (meaning?.kind !== 'reference' || meaning.area !== path || meaning.from !== kind) continue;
          if (!named.has(meaning.name)) named.set(meaning.name, JSON.parse(bytes.toString()).digest);
        }
      }
    }
    const there = { chunks: new Set<string>(), manifests: new Set<string>() };
    const active = { chunks: new Set<string>(), manifests: new Set<ImageDigest>() };
    for (const at of objects.keys()) {
      const meaning = meaningOf(at);
      if (meaning?.kind === 'chunk') {
        there.chunks.add(meaning.id);
        if (rootNumberOf(meaning.area) === view.active.root) active.chunks.add(meaning.id);
      }
      if (meaning?.kind === 'manifest') {
        there.manifests.add(meaning.digest);
        if (meaning.area === view.active.path) active.manifests.add(meaning.digest);
      }
    }
    // Unless a writer was stopped before it put the manifest, a manifest in the active root finds its chunks there.
    for (const digest of this.#options.pauses ? [] : active.manifests)
      for (const id of this.#chunksOf.get(digest)!)
        if (!active.chunks.has(id))
          this.#faults.push(`at ${this.#sim.nowMs}: chunk ${id.slice(0, 8)} of unnamed ${digest} is gone`);
    for (const [name, digest] of named) {
      if (digest === null || this.#isLate(name, digest)) continue;
      if (!there.manifests.has(digest))
        this.#faults.push(`at ${this.#sim.nowMs}: the manifest of ${name} is gone`);
      for (const id of this.#chunksOf.get(digest)!)
        if (!there.chunks.has(id))
          this.#faults.push(`at ${this.#sim.nowMs}: chunk ${id.slice(0, 8)} of ${name} is gone`);
    }
  }

  /**
   * Whether a name was set by a writer that was stopped for too long and has not finished: what it means may be gone.
   */
  #isLate(name: string, digest: ImageDigest): boolean {
    const isOpen = this.#ops.some(
      (op) => op.name === name && op.digest === digest && !Number.isFinite(op.endMs),
    );
    if (!isOpen) return false;
    for (const [at, { bytes, modifiedMs }] of this.#storage.objects) {
      const meaning = meaningOf(at);
      if (meaning?.kind !== 'reference' || meaning.name !== name || meaning.from !== 'references') continue;
      const { digest: found, begun } = JSON.parse(bytes.toString());
      if (found === digest && modifiedMs - Date.parse(begun) > POLICY.buildMs) return true;
    }
    return false;
  }

  /** Each name must mean what its last change said, or one of the last changes if they were concurrent. */
  async #judgeNames(store: RootStore): Promise<void> {
    for (const name of NAMES) {
      const ops = this.#ops.filter((op) => op.name === name);
      const last = ops.filter(
        ({ endMs }) => !ops.some(({ startMs, endMs: end }) => Number.isFinite(end) && startMs > endMs),
      );
      const found = (await this.#finish(store.getReference(name)))?.digest ?? null;
      // A rotation removes a name without an image, left by a stopped writer.
      if (found === null && this.#options.pauses && last.some(({ endMs }) => !Number.isFinite(endMs)))
        continue;
      if (ops.length > 0 && !last.some(({ digest }) => digest === found))
        this.#faults.push(
          `${name} means ${found}, and was last set to ${last.map(({ digest }) => digest).join(' or ')}`,
        );
    }
  }

  /** With nobody else active, everything that belongs to no image must go in the end. */
  async #collectAll(): Promise<void> {
    const user = this.#user();
    const store = await this.#finish(RootStore.open(user, { clock: user.clock }));
    await this.#judgeNames(store);
    for (const work of [rotate, purge, sweep, purge] as ((parts: StoreParts) => Promise<unknown>)[]) {
      await this.#finish(work(store.parts));
      this.#sim.nowMs += 2 * POLICY.retentionMs;
    }
    this.#judge();
    await this.#judgeNames(store);
    const live = new Set<string>();
    for (const { digest } of await this.#finish(store.listReferences()))
      for (const id of this.#chunksOf.get(digest)!) live.add(id);
    const left = [...this.#storage.objects.keys()].filter((at) => {
      const meaning = meaningOf(at);
      return meaning?.kind === 'chunk' && !live.has(meaning.id);
    });
    if (left.length > 0) this.#faults.push(`${left.length} chunks of no image are left: ${left[0]}`);
    this.#count('collections to the end');
  }

  async #finish<T>(promise: Promise<T>): Promise<T> {
    let settled = false;
    const end = () => {
      settled = true;
    };
    promise.then(end, end);
    while (!settled) await this.#sim.run(this.#sim.nowMs + 1, () => undefined);
    return promise;
  }
}
