/** The retry wrapper: the contract over a good store and over a failing one, and what it must not retry. */
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { Outage } from '../../../src/async/patience.ts';
import { type ErrorCode, LazydiskError } from '../../../src/errors.ts';
import { DirObjects } from '../../../src/store/objects/dir-objects.ts';
import type {
  ListOptions,
  ObjectInfo,
  ObjectStore,
  PutOptions,
} from '../../../src/store/objects/object-store.ts';
import { PagedList } from '../../../src/store/objects/paged-list.ts';
import { RetryObjects } from '../../../src/store/objects/retry-objects.ts';
import { addWords, listed, objectsSuite, refusalSuite, wordsOf } from './objects-suite.ts';

/** Whether and how a call fails, before or after it is done. */
type Plan = (call: string) => { error: Error; isDone?: boolean } | undefined;

/** A store whose calls fail according to a plan. */
class FailingObjects implements ObjectStore {
  readonly url: string;
  readonly isWritable = true;
  readonly inner: ObjectStore;
  isPaged = true;
  plan: Plan;
  readonly calls: string[] = [];

  constructor(inner: ObjectStore, plan: Plan) {
    this.inner = inner;
    this.url = inner.url;
    this.plan = plan;
  }

  get: ObjectStore['get'] = (...words) => this.#call('get', () => this.inner.get(...words));
  head: ObjectStore['head'] = (...words) => this.#call('head', () => this.inner.head(...words));
  copy: ObjectStore['copy'] = (...words) => this.#call('copy', () => this.inner.copy(...words));
  delete: ObjectStore['delete'] = (...words) => this.#call('delete', () => this.inner.delete(...words));
  nowMs: ObjectStore['nowMs'] = (options) => this.#call('nowMs', () => this.inner.nowMs(options));
  canCompareAndSet = () => this.#call('canCompareAndSet', () => this.inner.canCompareAndSet());
  close = () => this.inner.close();

  put(key: string, bytes: Uint8Array, options?: PutOptions): Promise<void> {
    return this.#call('put', () => this.inner.put(key, bytes, options));
  }

  /** Pages of a folder that does not change meanwhile. */
  list(prefix: string, options?: ListOptions): AsyncIterable<readonly ObjectInfo[]> {
    if (!this.isPaged) return this.#generate(prefix, options);
    return new PagedList((at) =>
      this.#call('list', async () => {
        const pages = await Array.fromAsync(this.inner.list(prefix, options));
        const n = Number(at ?? 0);
        return { infos: pages[n] ?? [], next: n + 1 < pages.length ? String(n + 1) : undefined };
      }),
    );
  }

  async *#generate(prefix: string, options?: ListOptions): AsyncGenerator<readonly ObjectInfo[]> {
    for await (const page of this.inner.list(prefix, options)) {
      await this.#call('list', async () => undefined);
      yield page;
    }
  }

  async #call<T>(name: string, work: () => Promise<T>): Promise<T> {
    this.calls.push(name);
    const failure = this.plan(name);
    if (failure && !failure.isDone) throw failure.error;
    const result = await work();
    if (failure) throw failure.error;
    return result;
  }
}

const unavailable = () => new LazydiskError('UNAVAILABLE', 'the store is away');

/** With many concurrent calls, every second failure may always hit the same call. */
const OFTEN = { tries: 100, pauses: { firstMs: 0, longestMs: 0 } };

/** Every second call fails, alternately before and after it is done. */
function everySecond(): Plan {
  let calls = 0;
  return () => (++calls % 2 ? undefined : { error: unavailable(), isDone: calls % 4 === 0 });
}

t.test('contract, over a store that is well', (t) => {
  objectsSuite(t, async (t) => {
    const dir = join(t.testdir(), 'store');
    return async () => new RetryObjects(new DirObjects(dir));
  });
  t.end();
});

t.test('contract, over a store where every second call fails', (t) => {
  objectsSuite(t, async (t) => {
    const dir = join(t.testdir(), 'store');
    return async () => new RetryObjects(new FailingObjects(new DirObjects(dir), everySecond()), OFTEN);
  });
  t.end();
});

t.test('contract of refusals', (t) => {
  const denied = new LazydiskError('UNAVAILABLE', 'access denied', { retryable: false });
  for (const isPaged of [true, false])
    refusalSuite(
      t,
      async (t) => {
        const store = new FailingObjects(new DirObjects(t.testdir({ f: { a: '' } })), () => ({
          error: denied,
        }));
        store.isPaged = isPaged;
        return store;
      },
      'f/',
    );
  t.end();
});

function failing(t: Test, plan: Plan, tries = 5): { store: RetryObjects; inner: FailingObjects } {
  const inner = new FailingObjects(new DirObjects(join(t.testdir(), 'store')), plan);
  const store = new RetryObjects(inner, { pauses: { firstMs: 1, longestMs: 1 }, tries });
  t.teardown(() => store.close());
  return { store, inner };
}

t.test('what may pass is tried again, up to the bound, and the error says how often', async (t) => {
  for (const code of ['UNAVAILABLE', 'TIMEOUT', 'OVERLOAD'] as ErrorCode[]) {
    const { store, inner } = failing(t, () => ({ error: new LazydiskError(code, 'away') }));
    await t.rejects(store.get('x', 1), { code, message: 'away (tried 5 times)' });
    t.equal(inner.calls.length, 5);
    await t.rejects(store.withoutRetries.head('x'), { code, message: 'away' });
    t.equal(inner.calls.length, 6);
    let left = 4;
    inner.plan = () => (left-- > 0 ? { error: new LazydiskError(code, 'away') } : undefined);
    t.equal(await store.get('x', 1), undefined);
  }
});

t.test('answers and refusals are not asked for again', async (t) => {
  const errors = [
    new LazydiskError('UNAVAILABLE', 'access denied', { retryable: false }),
    ...(['BUSY', 'NO_SPACE', 'ABORTED', 'INTERNAL', 'UNSUPPORTED', 'CORRUPT'] as ErrorCode[]).map(
      (code) => new LazydiskError(code, code),
    ),
  ];
  for (const error of errors) {
    const { store, inner } = failing(t, () => ({ error }));
    await t.rejects(store.put('x', Buffer.alloc(1)), error);
    t.equal(inner.calls.length, 1, error.message);
  }
});

/** A store with patience that is unreachable for the first `failures` calls, and the outages it reported. */
function patient(t: Test, failures: number, forMs: number, signal?: AbortSignal) {
  const inner = new FailingObjects(new DirObjects(join(t.testdir(), 'store')), () =>
    failures-- > 0 ? { error: unavailable() } : undefined,
  );
  const outages: (Outage | undefined)[] = [];
  const patience = { forMs, ...(signal && { signal }), onOutage: (outage?: Outage) => outages.push(outage) };
  const store = new RetryObjects(inner, { pauses: { firstMs: 1, longestMs: 1 }, tries: 3, patience });
  t.teardown(() => store.close());
  return { store, inner, outages };
}

t.test('who has patience waits for a store that is away, and is told of it', async (t) => {
  const { store, inner, outages } = patient(t, 8, 60_000);
  t.equal(store.retryForMs, 60_000);
  t.equal(await store.get('x', 1), undefined);
  t.equal(inner.calls.length, 9);
  t.equal(outages.length, 9);
  const [first, last] = [outages[0]!, outages[7]!];
  t.match(last, { sinceMs: first.sinceMs, untilMs: first.sinceMs + 60_000, reason: 'the store is away' });
  t.equal(outages[8], undefined, 'and that it is back');
  await store.get('x', 1);
  t.equal(outages.length, 9);
  for (const isPaged of [true, false]) {
    const listing = patient(t, 8, 60_000);
    await listing.store.put('a/b', Buffer.from('x')).catch(() => undefined);
    listing.inner.isPaged = isPaged;
    let left = 8;
    listing.inner.plan = () => (left-- > 0 ? { error: unavailable() } : undefined);
    t.equal((await listed(listing.store, 'a/')).length, 1, `a list, paged: ${isPaged}`);
  }
});

t.test('patience ends: by time, by the signal, and for whoever asks without retries', async (t) => {
  const short = patient(t, Number.POSITIVE_INFINITY, 30);
  await t.rejects(short.store.get('x', 1), { code: 'UNAVAILABLE', message: /tried \d+ times/ });
  t.ok(short.inner.calls.length >= 3);
  const none = patient(t, Number.POSITIVE_INFINITY, 0);
  await t.rejects(none.store.get('x', 1), { code: 'UNAVAILABLE', message: /tried 3 times/ });
  const counted = patient(t, Number.POSITIVE_INFINITY, 60_000);
  await t.rejects(counted.store.withoutRetries.get('x', 1), { message: 'the store is away' });
  t.equal(counted.outages.length, 0, 'an object that one is ready to miss is no outage');
  const controller = new AbortController();
  const stopped = patient(t, Number.POSITIVE_INFINITY, 60_000, controller.signal);
  const reading = stopped.store.get('x', 1);
  setTimeout(() => controller.abort(), 20);
  await t.rejects(reading, { code: 'ABORTED' });
});

t.test('refusals are not waited for', async (t) => {
  const { store, inner } = patient(t, 0, 60_000);
  for (const error of [
    new LazydiskError('UNAVAILABLE', 'access denied', { retryable: false }),
    new LazydiskError('NOT_FOUND', 'no bucket'),
  ]) {
    inner.plan = () => ({ error });
    await t.rejects(store.get('x', 1), error);
  }
  t.equal(inner.calls.length, 2);
});

t.test('who waits for the next try may be cancelled', async (t) => {
  const inner = new FailingObjects(new DirObjects(t.testdir()), () => ({ error: unavailable() }));
  const store = new RetryObjects(inner, { pauses: { firstMs: 60_000, longestMs: 60_000 } });
  const started = performance.now();
  await t.rejects(store.get('x', 1, { signal: AbortSignal.timeout(50) }), { code: 'ABORTED' });
  t.ok(performance.now() - started < 2_000);
  t.equal(inner.calls.length, 1);
});

t.test('a write over a version that came through although it failed is done', async (t) => {
  const { store, inner } = failing(t, () => undefined);
  let isFirst = true;
  inner.plan = (call) => {
    if (call !== 'put' || !isFirst) return undefined;
    isFirst = false;
    return { error: unavailable(), isDone: true };
  };
  await store.put('v', Buffer.from('mine'), { ifVersion: null });
  t.same(inner.calls, ['put', 'put', 'get']);

  isFirst = true;
  const { version } = (await store.get('v', 10))!;
  await inner.inner.put('v', Buffer.from('theirs'));
  inner.plan = (call) => {
    if (call !== 'put' || !isFirst) return undefined;
    isFirst = false;
    return { error: unavailable() };
  };
  await t.rejects(store.put('v', Buffer.from('mine'), { ifVersion: version }), { code: 'BUSY' });
  t.equal(String((await store.get('v', 10))?.bytes), 'theirs', 'and what others wrote stays');
});

t.test('many who write one object over a store that fails lose nothing, and do nothing twice', async (t) => {
  const dir = join(t.testdir(), 'store');
  const stores = Array.from(
    { length: 4 },
    () => new RetryObjects(new FailingObjects(new DirObjects(dir), everySecond()), OFTEN),
  );
  await Promise.all(stores.map((store) => addWords(store, 'words', 10)));
  t.equal(wordsOf(await stores[0]!.get('words', 10_000)).length, 40);
  await Promise.all(stores.map((store) => store.close()));
});

t.test('of a list by pages only the page that failed is asked for again', async (t) => {
  const { store, inner } = failing(t, () => undefined);
  const keys = Array.from({ length: 20 }, (_, n) => `f/${n}`);
  for (const key of keys) await store.put(key, Buffer.alloc(1));
  inner.calls.length = 0;
  inner.plan = everySecond();
  const found = (await listed(store, 'f/', { pageMax: 4 })).map(({ key }) => key);
  t.same(found.sort(), keys.toSorted(), 'each once');
  t.equal(inner.calls.length, 9, 'five pages, four of them twice');
});

t.test('any other list starts over, loses nothing, and ends', async (t) => {
  const { store, inner } = failing(t, () => undefined);
  inner.isPaged = false;
  const keys = Array.from({ length: 20 }, (_, n) => `f/${n}`);
  for (const key of keys) await store.put(key, Buffer.alloc(1));
  let left = 2;
  inner.plan = () => (left-- === 0 ? { error: unavailable() } : undefined);
  const found = (await listed(store, 'f/', { pageMax: 4 })).map(({ key }) => key);
  t.same([...new Set(found)].sort(), keys.toSorted());
  t.equal(found.length, 28, 'two pages came twice');
  let calls = 0;
  inner.plan = () => (++calls % 3 === 0 ? { error: unavailable() } : undefined);
  await t.rejects(listed(store, 'f/', { pageMax: 4 }), { code: 'UNAVAILABLE', message: /tried 5 times/ });
});
