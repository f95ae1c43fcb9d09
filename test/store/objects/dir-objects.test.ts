/** Objects in a directory: the contract of all object stores, and what is specific to files. */
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  existsSync,
  mkdirSync,
  readdirSync,
  renameSync,
  rmdirSync,
  statSync,
  symlinkSync,
  truncateSync,
  unlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { DirObjects } from '../../../src/store/objects/dir-objects.ts';
import { DurableWriter } from '../../../src/store/objects/durable-writer.ts';
import { WriteLock } from '../../../src/store/objects/write-lock.ts';
import { newWriterName } from '../../../src/store/objects/writer-dir.ts';
import { listed, objectsSuite, refusalSuite, wordsOf } from './objects-suite.ts';

t.test('contract', (t) => {
  objectsSuite(t, async (t) => {
    const dir = join(t.testdir(), 'store');
    return async () => new DirObjects(dir);
  });
  t.end();
});

t.test('contract of refusals: a folder that cannot be entered', (t) => {
  const make = async (t: Test) => {
    const store = newStore(t);
    mkdirSync(store.path);
    symlinkSync('loop', join(store.path, 'loop'));
    return store;
  };
  refusalSuite(t, make, 'loop/');
  t.end();
});

function newStore(t: Test, dir = join(t.testdir(), 'store')): DirObjects {
  const store = new DirObjects(dir);
  t.teardown(() => store.close());
  return store;
}

t.test('files are keys below the directory, and nothing else stays', async (t) => {
  const dir = t.testdir();
  const store = newStore(t, `${dir}/a b/store/`);
  t.equal(store.url, `file://${dir}/a b/store`);
  await store.put('x/y%20z', Buffer.from('1'));
  await store.put('x/v', Buffer.from('2'), { ifVersion: null });
  await store.close();
  t.same(readdirSync(store.path, { recursive: true }).sort(), ['tmp', 'x', 'x/v', 'x/y%20z']);
  t.equal(statSync(join(store.path, 'x/v')).mode & 0o777, 0o644);
  await t.rejects(store.put('x/y', Buffer.from('x')), { code: 'INTERNAL' }, 'closed is closed');
});

t.test('what is no file is no object, and takes no thread', async (t) => {
  const store = newStore(t);
  await store.put('x/a', Buffer.from('1'));
  execFileSync('mkfifo', [join(store.path, 'x', 'fifo')]);
  symlinkSync('/dev/zero', join(store.path, 'x', 'zeroes'));
  mkdirSync(join(store.path, 'x', 'folder'));
  for (const name of ['fifo', 'zeroes', 'folder'])
    for (let n = 0; n < 10; n++) t.equal(await store.get(`x/${name}`, 100), undefined, name);
  t.equal((await store.get('x/a', 100))?.bytes.toString(), '1');
});

t.test('a directory that vanishes is not an empty store', async (t) => {
  const store = newStore(t);
  t.equal(await store.get('x/a', 100), undefined, 'never seen: a store that is about to be made');
  t.same(await listed(store, 'x/'), []);
  await store.put('x/a', Buffer.from('1'));
  t.ok(await store.get('x/a', 100));
  t.equal(await store.get('x/b', 100), undefined);
  renameSync(store.path, `${store.path}.away`);
  const isGone = { code: 'UNAVAILABLE', message: /the directory is gone, or empty now/ };
  await t.rejects(store.get('x/a', 100), isGone);
  await t.rejects(listed(store, 'x/'), isGone);
  mkdirSync(store.path);
  await t.rejects(store.get('x/a', 100), isGone, 'a mount point without its file system');
  rmdirSync(store.path);
  renameSync(`${store.path}.away`, store.path);
  t.ok(await store.get('x/a', 100));
});

t.test('a writer whose temporary directory another machine has removed makes it again', async (t) => {
  const store = newStore(t);
  await store.put('a', Buffer.from('1'));
  const tmp = join(store.path, 'tmp');
  const [own] = readdirSync(tmp);
  rmdirSync(join(tmp, own!));
  await Promise.all(['b', 'c', 'd'].map((key) => store.put(key, Buffer.from('2'))));
  t.ok(await store.get('d', 10));
  rmdirSync(join(tmp, own!));
  t.type(await store.nowMs(), 'number');

  renameSync(store.path, `${store.path}.away`);
  await t.rejects(store.put('e', Buffer.from('3')), { code: 'UNAVAILABLE', message: /ENOENT/ });
  t.notOk(existsSync(store.path), 'a store that is gone is not begun anew');
});

t.test('a writer that could not make its temporary directory tries again', async (t) => {
  const store = newStore(t);
  writeFileSync(store.path, 'in the way');
  await t.rejects(store.put('a', Buffer.from('1')), { code: 'UNAVAILABLE' });
  unlinkSync(store.path);
  await store.put('a', Buffer.from('1'));
  t.ok(await store.get('a', 10));
});

t.test('who only reads writes nothing', async (t) => {
  const store = newStore(t);
  await store.get('x', 1);
  await store.head('x/y');
  await listed(store, 'x/');
  await store.delete(['x']);
  await store.copy('x', 'y');
  await store.canCompareAndSet();
  await store.close();
  t.notOk(existsSync(store.path));
});

t.test('the folder of temporary files holds no keys', async (t) => {
  const store = newStore(t);
  await t.rejects(store.get('tmp/x', 1), { code: 'INTERNAL' });
  await t.rejects(store.put('tmp/x/y', Buffer.alloc(1)), { code: 'INTERNAL' });
  await t.rejects(listed(store, 'tmp/'), { code: 'INTERNAL' });
  await store.put('tmpx/y', Buffer.alloc(1));
});

t.test('files that are no keys are not listed; folders elsewhere are', async (t) => {
  const store = newStore(t);
  await store.put('f/a', Buffer.alloc(1));
  for (const name of ['a b', 'ä', 'a~']) writeFileSync(join(store.path, 'f', name), 'x');
  mkdirSync(join(store.path, 'f', 'empty'));
  const elsewhere = join(store.path, '..', 'elsewhere');
  mkdirSync(elsewhere);
  writeFileSync(join(elsewhere, 'b'), 'x');
  symlinkSync(elsewhere, join(store.path, 'f', 'link'));
  symlinkSync('/nonexistent', join(store.path, 'f', 'dangling'));
  t.same((await listed(store, 'f/')).map(({ key }) => key).sort(), ['f/a', 'f/link/b']);
});

t.test('files that vanish during a listing do not end it', async (t) => {
  const store = newStore(t);
  const keys = Array.from({ length: 300 }, (_, n) => `f/${n % 10}/${n}`);
  await Promise.all(keys.map((key) => store.put(key, Buffer.alloc(1))));
  const seen: string[] = [];
  for await (const page of store.list('f/', { pageMax: 10 })) {
    seen.push(...page.map(({ key }) => key));
    await store.delete(keys.filter((_, n) => n % 2));
  }
  t.ok(
    keys.filter((_, n) => n % 2 === 0).every((key) => seen.includes(key)),
    'all that stayed',
  );
});

t.test('a sparse giant is not read whole', async (t) => {
  const store = newStore(t);
  await store.put('x', Buffer.from('x'));
  truncateSync(join(store.path, 'x'), 2 ** 40);
  t.equal((await store.get('x', 1000))?.bytes.length, 1001);
  t.equal((await store.head('x'))?.sizeBytes, 2 ** 40);
});

t.test('what the file system refuses is UNAVAILABLE with its cause, and names the key', async (t) => {
  const store = newStore(t);
  await store.put('file', Buffer.from('x'));
  const expected = { code: 'UNAVAILABLE', message: /file:.*store: cannot write file\/below: ENOTDIR/ };
  await t.rejects(store.put('file/below', Buffer.from('x')), expected);
  await store.put('folder/x', Buffer.from('x'));
  await t.rejects(store.put('folder', Buffer.from('x')), { code: 'UNAVAILABLE' });
  t.ok(await store.get('folder/x', 10));
});

t.test('a full file system is NO_SPACE', async (t) => {
  const store = newStore(t);
  const write = DurableWriter.prototype.write;
  t.teardown(() => {
    DurableWriter.prototype.write = write;
  });
  for (const code of ['ENOSPC', 'EDQUOT']) {
    DurableWriter.prototype.write = () => Promise.reject(Object.assign(new Error(code), { code }));
    await t.rejects(store.put('x', Buffer.alloc(1)), { code: 'NO_SPACE', message: new RegExp(`x: ${code}`) });
  }
});

t.test('a lock of a dead process is broken, one of a live process waited for', async (t) => {
  const store = newStore(t);
  await store.put('v', Buffer.from('1'), { ifVersion: null });
  const tmp = join(store.path, 'tmp');
  const suffix = await lockSuffix(store);
  const child = spawn('sleep', ['1000']);
  t.teardown(async () => {
    child.kill('SIGKILL');
    await once(child, 'exit');
  });
  const [host] = (await newWriterName()).split('.');
  const lock = join(tmp, `${host}.${child.pid}.1.abc.0${suffix}`);

  writeFileSync(lock, '');
  await store.put('v', Buffer.from('2'), { ifVersion: (await store.get('v', 10))!.version });
  t.notOk(existsSync(lock), 'the process of that id started at another time');

  const mine = join(tmp, `${await newWriterName()}.0${suffix}`);
  writeFileSync(mine, '');
  let done = false;
  const { version } = (await store.get('v', 10))!;
  const waiting = store.put('v', Buffer.from('3'), { ifVersion: version }).then(() => {
    done = true;
  });
  await new Promise((resolve) => setTimeout(resolve, 300));
  t.notOk(done, 'waits');
  t.ok(existsSync(mine));
  await store.put('other', Buffer.from('x'), { ifVersion: null });
  unlinkSync(mine);
  await waiting;
  t.equal(String((await store.get('v', 10))?.bytes), '3');
});

t.test('a lock of another machine counts for a minute; who waits may be cancelled', async (t) => {
  const store = newStore(t);
  await store.put('v', Buffer.from('1'), { ifVersion: null });
  const lock = join(store.path, 'tmp', `another-host.1.1.abc.0${await lockSuffix(store)}`);
  writeFileSync(lock, '');
  const options = { ifVersion: (await store.get('v', 10))!.version, signal: AbortSignal.timeout(100) };
  await t.rejects(store.put('v', Buffer.from('2'), options), { code: 'ABORTED' });
  utimesSync(lock, 1, Date.now() / 1000 - 70);
  await store.put('v', Buffer.from('2'), { ifVersion: options.ifVersion });
  t.notOk(existsSync(lock));
});

t.test('who was stopped while it held a lock, and lost it, writes nothing when it goes on', async (t) => {
  const [stopped, store] = [newStore(t), newStore(t)];
  await store.put('v', Buffer.from('0'), { ifVersion: null });
  const { version } = (await store.get('v', 10))!;
  const { writeOver } = DurableWriter.prototype;
  const [reached, going] = [Promise.withResolvers<string>(), Promise.withResolvers<void>()];
  t.teardown(() => {
    DurableWriter.prototype.writeOver = writeOver;
  });
  DurableWriter.prototype.writeOver = async function (own, ...rest) {
    DurableWriter.prototype.writeOver = writeOver;
    reached.resolve(own);
    await going.promise;
    return writeOver.call(this, own, ...rest);
  };
  const late = stopped.put('v', Buffer.from('late'), { ifVersion: version });
  const lock = await reached.promise;
  const waiting = AbortSignal.timeout(200);
  await t.rejects(store.put('v', Buffer.from('1'), { ifVersion: version, signal: waiting }), {
    code: 'ABORTED',
  });
  utimesSync(lock, 1, Date.now() / 1000 - 70);
  await store.put('v', Buffer.from('1'), { ifVersion: version });
  going.resolve();
  await t.rejects(late, { code: 'BUSY' });
  t.equal(String((await store.get('v', 10))?.bytes), '1');
  t.same(
    readdirSync(join(store.path, 'tmp')).filter((name) => name.includes('.lock-')),
    [],
  );
});

t.test('processes that write one object together lose nothing', async (t) => {
  const dir = join(t.testdir(), 'store');
  const script = `
    import { DirObjects } from '${import.meta.resolve('../../../src/store/objects/dir-objects.ts')}';
    import { addWords } from '${import.meta.resolve('./objects-suite.ts')}';
    const store = new DirObjects(${JSON.stringify(dir)});
    await addWords(store, 'words', 20);
    await store.close();`;
  const children = Array.from({ length: 4 }, () =>
    spawn(process.execPath, ['--input-type=module', '-e', script], {
      stdio: ['ignore', 'ignore', 'inherit'],
    }),
  );
  const codes = await Promise.all(children.map(async (child) => (await once(child, 'exit'))[0]));
  t.same(codes, [0, 0, 0, 0]);
  t.equal(wordsOf(await newStore(t, dir).get('words', 10_000)).length, 80);
  t.same(readdirSync(join(dir, 'tmp')), [], 'no lock stays');
});

/** How the names of locks for the key `v` end, taken from a lock that is held. */
async function lockSuffix(store: DirObjects): Promise<string> {
  const dir = join(store.path, '..', 'locks');
  return new WriteLock(dir).hold('v', undefined, async () => /\.lock-.*/.exec(readdirSync(dir)[0]!)![0]);
}
