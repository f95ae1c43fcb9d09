/**
 * The contract of src/store/objects/object-store.ts as tests; every implementation and every wrapper runs it. `open`
 * must return views of one empty store, as two processes would have. The part that applies to read-only stores is
 * readingSuite, which takes a store that holds `readingObjects` already.
 */
import { randomBytes } from 'node:crypto';
import type { Test } from 'tap';
import type { ObjectBytes, ObjectInfo, ObjectStore } from '../../../src/store/objects/object-store.ts';
import { PagedList } from '../../../src/store/objects/paged-list.ts';
import { RetryObjects } from '../../../src/store/objects/retry-objects.ts';
import { type OpenViews, testsOnViews } from '../../support/views.ts';

export function objectsSuite(t: Test, open: OpenViews<ObjectStore>): void {
  const withStore = testsOnViews(t, open);

  t.test('reading', async (t) => {
    readingSuite(t, async (t) => {
      const openView = await open(t);
      const store = await openView();
      for (const [key, bytes] of readingObjects) await store.put(key, bytes);
      await store.close();
      return openView;
    });
  });

  withStore('an empty store has nothing, and says so without failing', async (t, store) => {
    t.equal(store.isWritable, true);
    t.equal(await store.copy('a/b', 'a/c'), false);
    t.equal(await store.get('a/c', 10), undefined, 'nor made by a copy of nothing');
    await store.delete([]);
    await store.delete(['a/b', 'c']);
    t.same(await listed(store, 'a/'), []);
    t.same(await listed(store, 'a/b/c/'), []);
  });

  withStore('an object is there for everyone when its put resolves', async (t, store, again) => {
    for (const sizeBytes of [0, 1, 4096, 600_000]) {
      const [key, bytes] = [`s/${sizeBytes}`, randomBytes(sizeBytes)];
      await store.put(key, bytes);
      for (const view of [store, await again()]) {
        t.ok((await view.get(key, 600_000))?.bytes.equals(bytes), key);
        const info = await view.head(key);
        t.match(info, { key, sizeBytes });
        t.ok(Math.abs((info?.modifiedMs ?? 0) - Date.now()) < 60_000, 'written just now');
        t.equal((await listed(view, 's/')).find((entry) => entry.key === key)?.sizeBytes, sizeBytes);
      }
    }
  });

  withStore('the time that it tells is the one that it gives to objects', async (t, store, again) => {
    for (const view of [store, await again()]) {
      const beforeMs = await view.nowMs();
      await view.put('s/now', Buffer.from('x'));
      const { modifiedMs } = (await view.head('s/now'))!;
      const afterMs = await view.nowMs();
      t.ok(beforeMs <= modifiedMs, `${beforeMs} and then ${modifiedMs}`);
      t.ok(modifiedMs < afterMs + 1_000, `${modifiedMs} and then ${afterMs}`);
    }
    t.same(await listed(store, ''), await listed(store, 's/'), 'and leaves nothing');
  });

  withStore(
    'what was there is replaced, whole, for those who read meanwhile, too',
    async (t, store, again) => {
      const contents = Array.from({ length: 8 }, (_, n) => Buffer.alloc(100_000 + n * 1000, n));
      await store.put('x', contents[0]!);
      let done = false;
      const writing = (async () => {
        for (const content of contents) await store.put('x', content);
        done = true;
      })();
      const view = await again();
      while (!done) {
        const read = await view.get('x', 200_000);
        if (!contents.some((content) => read?.bytes.equals(content))) t.fail('neither of them');
      }
      await writing;
      t.ok((await view.get('x', 200_000))?.bytes.equals(contents.at(-1)!));
      t.equal((await view.head('x'))?.sizeBytes, contents.at(-1)!.length);
    },
  );

  withStore('many puts in flight all land', async (t, store, again) => {
    const objects = Array.from({ length: 150 }, (_, n) => [`many/${n % 7}/${n}`, randomBytes(5000)] as const);
    await Promise.all(objects.map(([key, bytes]) => store.put(key, bytes)));
    const view = await again();
    const reads = await Promise.all(objects.map(([key]) => view.get(key, 5000)));
    t.ok(objects.every(([, bytes], n) => reads[n]?.bytes.equals(bytes)));
  });

  withStore('a copy is as good as a put, over what was there, too', async (t, store, again) => {
    const bytes = randomBytes(70_000);
    await store.put('from/x%41', bytes);
    await store.put('to/b', Buffer.from('old'));
    const view = await again();
    for (const to of ['to/a', 'to/b']) {
      t.equal(await store.copy('from/x%41', to), true);
      t.ok((await view.get(to, 70_000))?.bytes.equals(bytes));
    }
    t.ok(await view.head('from/x%41'), 'and the source stays');
  });

  withStore('deleted is gone, and only that', async (t, store, again) => {
    const keys = Array.from({ length: 30 }, (_, n) => `d/${n}`);
    await Promise.all(keys.map((key) => store.put(key, Buffer.from(key))));
    await store.delete([...keys.slice(0, 20), 'd/never', 'd/0/never', 'elsewhere/x']);
    const view = await again();
    t.same((await listed(view, 'd/')).map(({ key }) => key).sort(), keys.slice(20).sort());
    t.equal(await view.get(keys[0]!, 10), undefined);
    t.equal(await view.head(keys[0]!), undefined);
    await view.put(keys[0]!, Buffer.from('back'));
    t.equal(String((await store.get(keys[0]!, 10))?.bytes), 'back');
  });

  withStore('a folder is listed whole, page by page, and nothing else is', async (t, store) => {
    const inside = Array.from({ length: 23 }, (_, n) => `f/${n % 3 ? 'sub/' : ''}${n}`);
    const outside = ['f2/x', 'ff/x', 'g/f/x'];
    await Promise.all([...inside, ...outside].map((key) => store.put(key, Buffer.alloc(key.length))));
    const pages = await Array.fromAsync(store.list('f/', { pageMax: 5 }));
    t.ok(pages.length >= 5 && pages.every((page) => page.length <= 5));
    const infos = pages.flat();
    t.same(infos.map(({ key }) => key).sort(), inside.toSorted());
    t.ok(infos.every(({ key, sizeBytes, modifiedMs }) => sizeBytes === key.length && modifiedMs > 1e12));
    t.same((await listed(store, 'f/sub/')).length, inside.filter((key) => key.includes('sub')).length);
    for await (const page of store.list('f/', { pageMax: 2 })) {
      t.ok(page.length <= 2, 'and may be left early');
      break;
    }
  });

  withStore('the whole store is a folder too, and may be looked at from above', async (t, store) => {
    const keys = ['top', 'a/1', 'a/b/2', 'a/b/3', 'c/4'];
    await Promise.all(keys.map((key) => store.put(key, Buffer.from(key))));
    t.same((await listed(store, '')).map(({ key }) => key).sort(), keys.toSorted());
    // A store that ignores the hint lists the contents of the folders too.
    const seen = async (prefix: string) => {
      const infos = await listed(store, prefix, { shallow: true });
      return new Set(infos.map(({ key }) => key.slice(prefix.length).replace(/\/.*/, '/')));
    };
    t.same(await seen(''), new Set(['a/', 'c/', 'top']));
    t.same(await seen('a/'), new Set(['1', 'b/']));
  });

  withStore('what was cancelled is ABORTED', async (t, store) => {
    await store.put('x', Buffer.from('x'));
    const options = { signal: AbortSignal.abort() };
    await t.rejects(store.put('y', Buffer.from('y'), options), { code: 'ABORTED' });
    await t.rejects(store.copy('x', 'y', options), { code: 'ABORTED' });
    await t.rejects(store.delete(['x'], options), { code: 'ABORTED' });
    await t.rejects(listed(store, 'f/', options), { code: 'ABORTED' });
    t.equal(await store.head('y'), undefined);
    await store.delete(['y'], { signal: new AbortController().signal });
    t.ok(await store.get('x', 10, { signal: new AbortController().signal }));
  });

  withStore('what is no key is INTERNAL, and reaches nothing', async (t, store) => {
    for (const key of [
      '',
      '/a',
      'a/',
      'a//b',
      '.',
      '..',
      'a/../b',
      'a/./b',
      'a b',
      'ä',
      'a\n',
      'a?b',
      'x'.repeat(513),
    ]) {
      await t.rejects(store.get(key, 10), { code: 'INTERNAL' }, JSON.stringify(key));
      await t.rejects(store.head(key), { code: 'INTERNAL' });
      await t.rejects(store.put(key, Buffer.from('x')), { code: 'INTERNAL' });
      await t.rejects(store.copy(key, 'to'), { code: 'INTERNAL' });
      await t.rejects(store.copy('from', key), { code: 'INTERNAL' });
      await t.rejects(store.delete(['good', key]), { code: 'INTERNAL' });
    }
    for (const prefix of ['/', 'a', '../', 'a//'])
      await t.rejects(listed(store, prefix), { code: 'INTERNAL' });
  });

  withStore('closing twice is closing once', async (_, store) => {
    await store.put('x', Buffer.from('x'));
    await store.close();
    await store.close();
  });

  withStore('a version is of a content', async (t, store, again) => {
    const versionNow = async (view: ObjectStore) => (await view.get('v', 100))?.version;
    await store.put('v', Buffer.from('one'));
    const first = await versionNow(store);
    t.type(first, 'string');
    t.equal(await versionNow(await again()), first);
    await store.put('v', Buffer.from('two'));
    t.not(await versionNow(store), first);
  });

  withStore(
    'writes over a version lose none of one another, where the store can',
    async (t, store, again) => {
      if (!(await store.canCompareAndSet())) {
        t.comment('this store cannot compare and set');
        return;
      }
      const bytes = (text: string) => Buffer.from(text);
      await store.put('v/a', bytes('one'), { ifVersion: null });
      await t.rejects(store.put('v/a', bytes('no'), { ifVersion: null }), { code: 'BUSY' });
      const { version } = (await store.get('v/a', 100))!;
      await store.put('v/a', bytes('two'), { ifVersion: version });
      await t.rejects(store.put('v/a', bytes('no'), { ifVersion: version }), { code: 'BUSY' });
      t.equal(String((await store.get('v/a', 100))?.bytes), 'two');
      await store.delete(['v/a']);
      await t.rejects(
        store.put('v/a', bytes('no'), { ifVersion: version }),
        { code: 'BUSY' },
        'nothing is no version',
      );
      t.equal(await store.get('v/a', 100), undefined);

      const views = [store, await again(), await again()];
      await Promise.all(Array.from({ length: 6 }, (_, n) => addWords(views[n % 3]!, 'v/words', 5)));
      t.equal(new Set(wordsOf(await store.get('v/words', 10_000))).size, 30);
    },
  );
}

/**
 * Adds `count` words of its own to the list at `key`, while others do the same. If a word is present, it was written,
 * whatever the store reported: this is how to use versions where a write may report failure and be done all the same.
 */
export async function addWords(store: ObjectStore, key: string, count: number): Promise<void> {
  for (let n = 0; n < count; n++) {
    const word = randomBytes(6).toString('hex');
    for (;;) {
      const before = await store.get(key, 10_000);
      if (wordsOf(before).includes(word)) break;
      const bytes = Buffer.from([...wordsOf(before), word].join(' '));
      try {
        await store.put(key, bytes, { ifVersion: before?.version ?? null });
        break;
      } catch (error) {
        if ((error as { code?: string }).code !== 'BUSY') throw error;
      }
    }
  }
}

export function wordsOf(object: ObjectBytes | undefined): string[] {
  return object ? object.bytes.toString().split(' ') : [];
}

export const readingObjects: readonly (readonly [string, Buffer])[] = [
  ['top', randomBytes(5)],
  ['chunks/ab/cd/0123', randomBytes(300_000)],
  ['names/team%2Fapp%3Av1.json', Buffer.from('{}')],
  ['empty', Buffer.alloc(0)],
];

/** For stores that hold `readingObjects`. */
export function readingSuite(t: Test, open: OpenViews<ObjectStore>): void {
  const withStore = (name: string, body: (t: Test, store: ObjectStore) => Promise<void>) =>
    t.test(name, async (t) => {
      const store = await (await open(t))();
      t.teardown(() => store.close());
      await body(t, store);
    });

  withStore('what is there comes back, with its size', async (t, store) => {
    for (const [key, bytes] of readingObjects) {
      t.ok((await store.get(key, bytes.length))?.bytes.equals(bytes), key);
      t.match(await store.head(key), { key, sizeBytes: bytes.length });
    }
    const reads = await Promise.all(
      Array.from({ length: 20 }, () => store.get('chunks/ab/cd/0123', 300_000)),
    );
    t.ok(
      reads.every((read) => read?.bytes.equals(readingObjects[1]![1])),
      'for many at once, too',
    );
  });

  withStore('what is not there is undefined', async (t, store) => {
    for (const key of ['nothing', 'chunks/ab/cd/0124', 'chunks/ab', 'top/below', 'names/team%2Fapp']) {
      t.equal(await store.get(key, 100), undefined, key);
      t.equal(await store.head(key), undefined);
    }
  });

  withStore('of an object over the bound comes one byte more than that', async (t, store) => {
    const whole = readingObjects[1]![1];
    for (const bytesMax of [0, 1, 1000, whole.length - 1]) {
      const read = await store.get('chunks/ab/cd/0123', bytesMax);
      t.ok(read?.bytes.equals(whole.subarray(0, bytesMax + 1)), `${bytesMax}`);
    }
    t.ok((await store.get('empty', 0))?.bytes.equals(Buffer.alloc(0)));
    t.ok((await store.get('chunks/ab/cd/0123', 2 ** 40))?.bytes.equals(whole), 'and a bound costs nothing');
  });

  withStore('a read that was cancelled is ABORTED', async (t, store) => {
    const options = { signal: AbortSignal.abort() };
    await t.rejects(store.get('top', 10, options), { code: 'ABORTED' });
    await t.rejects(store.head('top', options), { code: 'ABORTED' });
    const controller = new AbortController();
    const reads = Array.from({ length: 10 }, () => store.get('chunks/ab/cd/0123', 300_000, controller));
    controller.abort();
    const codes = (await Promise.allSettled(reads)).map((read) =>
      read.status === 'fulfilled' ? 'ABORTED' : read.reason.code,
    );
    t.ok(
      codes.every((code) => code === 'ABORTED'),
      'or done',
    );
    t.ok(await store.get('top', 10), 'and the store is none the worse');
  });
}

export async function listed(
  store: ObjectStore,
  prefix: string,
  options?: Parameters<ObjectStore['list']>[1],
): Promise<ObjectInfo[]> {
  return (await Array.fromAsync(store.list(prefix, options))).flat();
}

/**
 * Errors that only a person can fix. Every call on the store that `open` returns must fail with one, and the retry
 * wrapper must not repeat any request. `folder`: where the refused keys are.
 */
export function refusalSuite(t: Test, open: (t: Test) => Promise<ObjectStore>, folder = ''): void {
  const key = `${folder}x`;
  const calls: [string, (store: ObjectStore) => Promise<unknown>][] = [
    ['get', (store) => store.get(key, 1)],
    ['head', (store) => store.head(key)],
    ['put', (store) => store.put(key, Buffer.from('x'))],
    ['copy', (store) => store.copy(key, `${folder}y`)],
    ['delete', (store) => store.delete([key])],
    ['list', (store) => listed(store, folder)],
  ];
  for (const [name, call] of calls) {
    t.test(`what is refused for good is asked once: ${name}`, async (t) => {
      const store = await open(t);
      if (!store.isWritable && name !== 'get' && name !== 'head') return;
      const asked: string[] = [];
      const retrying = new RetryObjects(counting(store, asked), { patience: { forMs: 60_000 } });
      const error = await call(retrying).catch((error) => error);
      t.match(error, { code: 'UNAVAILABLE', retryable: false });
      t.equal(asked.length, 1, asked.join());
    });
  }
}

/** Wraps `store` to record its requests; a list counts when its pages are requested. */
function counting(store: ObjectStore, asked: string[]): ObjectStore {
  return new Proxy(store, {
    get(target, name: keyof ObjectStore) {
      const value: unknown = Reflect.get(target, name);
      if (typeof value !== 'function') return value;
      return (...words: unknown[]) => {
        const result: unknown = value.apply(target, words);
        if (!(result instanceof PagedList)) {
          asked.push(name);
          return result;
        }
        return new PagedList((at) => {
          asked.push(name);
          return result.page(at);
        });
      };
    },
  });
}
