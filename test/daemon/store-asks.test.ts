/** Attaches and lists while the store hangs: bounded, given up in time, and not blocking anything else. */
import { type ClientRequest, request } from 'node:http';
import { join } from 'node:path';
import t from 'tap';
import { ControlClient } from '../../src/daemon/client.ts';
import { StoreAsks } from '../../src/daemon/store-asks.ts';
import type { LazydiskError } from '../../src/errors.ts';
import { diskWorkplace, TestDaemon, type Workplace } from '../support/daemon.ts';
import { NbdClient } from '../support/nbd-client.ts';
import { serveStore } from '../support/web-store.ts';

const patient = () => ({ deadline: performance.now() + 60_000, signal: new AbortController().signal });
const impatient = (milliseconds: number) => ({ ...patient(), deadline: performance.now() + milliseconds });

t.test('whoever asked is let go at the deadline, and the place when the question ends', async (t) => {
  const asks = new StoreAsks(2);
  const hung = Promise.withResolvers<number>();
  const ask = () => asks.ask(impatient(20), 'the store does not answer', () => hung.promise);
  await t.rejects(Promise.all([ask(), ask()]), { code: 'TIMEOUT', message: /store does not answer/ });
  let begun = 0;
  const begin = async () => ++begun;
  await t.rejects(asks.ask(impatient(20), 'it is busy', begin), { code: 'TIMEOUT', message: /2 others/ });
  t.equal(begun, 0, 'what was given up before its turn is not asked');
  const waiting = asks.ask(patient(), '', begin);
  hung.resolve(1);
  t.equal(await waiting, 1);
  t.same(
    await Promise.all(Array.from({ length: 10 }, () => asks.ask(patient(), '', begin))).then((all) =>
      all.at(-1),
    ),
    11,
  );
});

t.test('whoever goes frees nobody else’s place, and gets ABORTED', async (t) => {
  const asks = new StoreAsks(1);
  const hung = Promise.withResolvers<number>();
  const gone = new AbortController();
  const first = asks.ask({ ...patient(), signal: gone.signal }, 'x', () => hung.promise);
  const second = asks.ask({ ...patient(), signal: gone.signal }, 'x', async () => 2);
  const third = asks.ask(patient(), 'x', async () => 3);
  gone.abort();
  await t.rejects(first, { code: 'ABORTED' });
  await t.rejects(second, { code: 'ABORTED' });
  await t.rejects(
    asks.ask({ ...patient(), signal: gone.signal }, 'x', async () => 4),
    { code: 'ABORTED' },
  );
  hung.reject(new Error('at last'));
  t.equal(await third, 3);
});

t.test('a question that fails gives its place back', async (t) => {
  const asks = new StoreAsks(1);
  for (let n = 0; n < 3; n++) {
    const work = () => Promise.reject(new Error(`failure ${n}`));
    await t.rejects(asks.ask(patient(), 'x', work), { message: `failure ${n}` });
  }
});

/** The store's paths that an attach reads. */
const NAMES = /\/(references|inherited|manifests)\//;

/** An attach whose client can disconnect. */
function attachCall(place: Workplace, name: string): { call: ClientRequest; status: Promise<number> } {
  const socketPath = join(place.runDir, 'control.sock');
  const call = request({ socketPath, method: 'POST', path: '/v1/drives', agent: false });
  const status = new Promise<number>((resolve, reject) => {
    call.on('response', (response) => resolve(response.resume().statusCode!)).on('error', reject);
  });
  call.end(JSON.stringify({ image: 'app:1', name }));
  return { call, status };
}

/** Resolves when `name` is being attached. */
async function taken(client: ControlClient, name: string): Promise<void> {
  for (;;) {
    const error = await client.attach({ image: 'none:1', name }).catch((error: LazydiskError) => error);
    if ('code' in error && error.code === 'EXISTS') return;
  }
}

t.test('a store that hangs: attaches fail in time and hold up nothing that does not need it', async (t) => {
  const place = await diskWorkplace(t, 4);
  const web = await serveStore(t, place.storeDir);
  const daemon = await TestDaemon.start(t, { ...place, store: web.url }, [
    '--store-timeout',
    '3s',
    '--starts-max',
    '4',
  ]);
  const client = new ControlClient(place.runDir);
  await client.attach({ image: 'app:1', name: 'before' });
  web.hang(NAMES);
  // More than may start at once, and more than the store is asked for at once.
  const calls = Array.from({ length: 40 }, (_, n) => attachCall(place, `hung${n}`));
  const statuses = Promise.all(calls.map(({ status }) => status));
  t.match(
    await client.attach({ image: place.image.digest, name: 'known' }),
    { name: 'known' },
    'a known image',
  );
  const guest = await NbdClient.open({ path: join(place.runDir, 'nbd.sock') }, 'known');
  const { data } = await guest.request({ type: 0, offset: 0, lengthBytes: 4096 });
  t.ok(data.equals(place.disk.subarray(0, 4096)), 'and it is read');
  guest.close();

  t.same(new Set(await statuses), new Set([504]));
  await t.rejects(client.attach({ image: 'app:1', name: 'hung0' }), {
    code: 'TIMEOUT',
    message: /image app:1: http:.* does not answer/,
  });
  await t.rejects(client.inspect('app:1'), { code: 'TIMEOUT', message: /does not answer/ });
  t.match(await client.status(), { state: 'serving', admission: { waiting: 0 } });

  web.mend();
  t.match(
    await client.attach({ image: 'app:1', name: 'hung0' }),
    { name: 'hung0' },
    'the name is free again',
  );
  const names = (await client.drives()).map(({ name }) => name);
  t.same(names, ['before', 'hung0', 'known'], 'nothing that was given up came true later');
  t.same(await daemon.stop(), { code: 0, signal: null });
});

t.test('an attach whose client goes is given up, and its name is free', async (t) => {
  const place = await diskWorkplace(t, 4);
  const web = await serveStore(t, place.storeDir);
  const daemon = await TestDaemon.start(t, { ...place, store: web.url }, ['--log-level', 'debug']);
  const client = new ControlClient(place.runDir);
  web.hang(NAMES);
  const { call, status } = attachCall(place, 'web');
  await taken(client, 'web');
  call.destroy();
  await t.rejects(status);
  await daemon.logged(({ msg }) => /client of a control request has gone/.test(msg ?? ''));
  web.mend();
  t.match(await client.attach({ image: 'app:1', name: 'web' }), { name: 'web' });
  t.same(
    daemon.log.filter(({ level }) => level === 'error'),
    [],
  );
});

t.test('a stop refuses the attaches that the store holds up, and ends', async (t) => {
  const place = await diskWorkplace(t, 4);
  const web = await serveStore(t, place.storeDir);
  const daemon = await TestDaemon.start(t, { ...place, store: web.url });
  const client = new ControlClient(place.runDir);
  web.hang(NAMES);
  const { status } = attachCall(place, 'web');
  await taken(client, 'web');
  const started = performance.now();
  t.same(await daemon.stop(), { code: 0, signal: null });
  t.equal(await status, 503);
  t.comment(`stopped in ${Math.round(performance.now() - started)} ms`);
});
