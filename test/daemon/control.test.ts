import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { request } from 'node:http';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { AttachRequest, DriveInfo } from '../../src/daemon/api.ts';
import { ControlClient } from '../../src/daemon/client.ts';
import { ControlServer, type ControlService } from '../../src/daemon/control.ts';
import { createLog } from '../../src/daemon/log.ts';
import { runPaths } from '../../src/daemon/run-paths.ts';
import { LazydiskError } from '../../src/errors.ts';

const LOG = createLog('silent');

function driveInfo(name: string): DriveInfo {
  const nbd = `nbd+unix:///${name}?socket=/s`;
  const attachedAt = '2026-01-01T00:00:00.000Z';
  return {
    name,
    image: 'a:latest',
    digest: 'sha256:0',
    fuse: null,
    nbd,
    nbdTcp: null,
    sizeBytes: 1,
    attachedAt,
  };
}

async function serve(
  t: Test,
  overrides: Partial<ControlService> = {},
  log = LOG,
): Promise<{ dir: string; calls: unknown[] }> {
  const dir = mkdtempSync(join(tmpdir(), 'lzd-'));
  const calls: unknown[] = [];
  const refuse = () => {
    throw new LazydiskError('NOT_FOUND', 'not here');
  };
  const service: ControlService = {
    status: refuse,
    drives: () => [driveInfo('a')],
    attach: async (wanted: AttachRequest) => {
      calls.push(wanted);
      return driveInfo(wanted.name ?? 'b');
    },
    stat: refuse,
    detach: async (name) => void calls.push(name),
    images: async () => [],
    fleet: refuse,
    fleetPlaces: refuse,
    inspect: async (name) => {
      calls.push(name);
      return { name, digest: 'sha256:0', updated: null, content: null };
    },
    metrics: async () => ({ contentType: 'text/plain', text: 'up 1\n' }),
    ...overrides,
  };
  const server = new ControlServer(service, log);
  await server.listen(runPaths(dir).control);
  t.teardown(async () => {
    await server.close(100);
    rmSync(dir, { recursive: true, force: true });
  });
  return { dir, calls };
}

function raw(
  dir: string,
  method: string,
  path: string,
  body?: string | Buffer,
): Promise<{ status: number; text: string }> {
  return new Promise((resolve, reject) => {
    const call = request({ socketPath: runPaths(dir).control, method, path, agent: false }, (response) => {
      const parts: Buffer[] = [];
      response.on('data', (part: Buffer) => parts.push(part));
      response.on('end', () =>
        resolve({ status: response.statusCode!, text: Buffer.concat(parts).toString() }),
      );
    });
    call.on('error', reject);
    call.end(body);
  });
}

t.test('client and server agree on every route', async (t) => {
  const { dir, calls } = await serve(t);
  const client = new ControlClient(dir);
  t.same(await client.drives(), [driveInfo('a')]);
  t.same(await client.attach({ image: 'debian:12', name: 'c' }), driveInfo('c'));
  await client.detach('c');
  t.same(await client.images(), []);
  t.match(await client.inspect('team/app:1'), { name: 'team/app:1' });
  t.equal(await client.metrics(), 'up 1\n');
  t.same(calls, [{ image: 'debian:12', name: 'c' }, 'c', 'team/app:1']);
  await t.rejects(client.stat('x'), { code: 'NOT_FOUND', message: 'not here' });
  await t.rejects(client.status(), { code: 'NOT_FOUND' });
});

t.test('a long list comes whole, in slices, also to a client that reads slowly or goes', async (t) => {
  const count = 20_000;
  const { dir } = await serve(t, {
    *drives() {
      for (let n = 0; n < count; n++) yield driveInfo(`d${n}`);
    },
  });
  let turns = 0;
  let listing = true;
  const turn = () => {
    turns++;
    if (listing) setImmediate(turn);
  };
  turn();
  const listed = await new ControlClient(dir).drives();
  listing = false;
  t.equal(listed.length, count);
  t.same(listed.at(-1), driveInfo(`d${count - 1}`));
  t.ok(turns > 100, `the event loop went on meanwhile: ${turns} turns`);
  await new Promise<void>((resolve) => {
    const call = request(
      { socketPath: runPaths(dir).control, path: '/v1/drives', agent: false },
      (response) => {
        response.once('readable', () => response.destroy());
        response.once('close', resolve);
      },
    );
    call.on('error', () => {}).end();
  });
  t.equal((await raw(dir, 'GET', '/v1/images')).status, 200);
});

t.test('an error keeps its code both ways, and a fault shows no inside', async (t) => {
  const { dir } = await serve(t, {
    attach: async () => {
      throw new LazydiskError('EXISTS', 'drive a is attached already');
    },
    images: async () => {
      throw new TypeError('x is not a function');
    },
  });
  await t.rejects(new ControlClient(dir).attach({ image: 'a' }), { code: 'EXISTS' });
  await t.rejects(new ControlClient(dir).images(), { code: 'INTERNAL' });
  const { status, text } = await raw(dir, 'POST', '/v1/drives', '{"image":"a"}');
  t.equal(status, 409);
  t.same(JSON.parse(text), { error: { code: 'EXISTS', message: 'drive a is attached already' } });
  t.notMatch((await raw(dir, 'GET', '/v1/images')).text, /control\.ts/, 'no stack');
});

t.test('bad requests are refused and the server goes on', async (t) => {
  const { dir, calls } = await serve(t);
  for (const [method, path, body, status] of [
    ['POST', '/v1/drives', '{', 400],
    ['POST', '/v1/drives', '', 400],
    ['POST', '/v1/drives', '[]', 400],
    ['POST', '/v1/drives', '{"image":7}', 400],
    ['POST', '/v1/drives', '{"image":""}', 400],
    ['POST', '/v1/drives', '{"image":"a","colour":"red"}', 400],
    ['POST', '/v1/drives', `{"image":"${'a'.repeat(600)}"}`, 400],
    ['POST', '/v1/drives', '{"__proto__":{"image":"a"}}', 400],
    ['GET', '/v1/drives/', undefined, 404],
    ['GET', '/v1/drives/%E0%A4%A', undefined, 400],
    ['GET', '/', undefined, 404],
    ['GET', '/constructor', undefined, 404],
    ['GET', '/v1/drives/a/b', undefined, 404],
    ['PUT', '/v1/drives', undefined, 422],
  ] as const) {
    const answer = await raw(dir, method, path, body).catch(() => ({ status: 400, text: '' }));
    t.equal(answer.status, status, `${method} ${path} ${body?.slice(0, 40)}`);
  }
  t.same(calls, []);
  t.equal((await raw(dir, 'GET', '/v1/drives?x=1')).status, 200);
});

t.test('a body over the limit is cut off, not kept', async (t) => {
  const { dir, calls } = await serve(t);
  const answer = await raw(dir, 'POST', '/v1/drives', Buffer.alloc(8 * 1024 * 1024, 'a')).catch(
    (error: NodeJS.ErrnoException) => ({ status: 400, text: error.code ?? '' }),
  );
  t.equal(answer.status, 400);
  t.same(calls, []);
  t.equal((await raw(dir, 'GET', '/v1/drives')).status, 200);
});

t.test('bytes that are no HTTP close that connection only', async (t) => {
  const { dir } = await serve(t);
  await new Promise<void>((resolve) => {
    const socket = connect(runPaths(dir).control, () => socket.write('\x00\xff\r\n\r\nNBDMAGIC'));
    socket.resume();
    socket.on('error', () => {});
    socket.on('close', () => resolve());
  });
  t.equal((await raw(dir, 'GET', '/v1/drives')).status, 200);
});

t.test(
  'a client that goes, in its body or while it waits, is no error, and what it asked for is told',
  async (t) => {
    const lines: { level: string; msg: string }[] = [];
    const seen = Promise.withResolvers<void>();
    const log = createLog('debug', {
      write: (line) => {
        lines.push(JSON.parse(line));
        if (lines.length === 2) seen.resolve();
      },
    });
    const asked = Promise.withResolvers<AbortSignal>();
    const images = (signal: AbortSignal) => {
      asked.resolve(signal);
      return new Promise<never>((_, reject) => {
        signal.addEventListener('abort', () => reject(new Error('given up')));
      });
    };
    const { dir } = await serve(t, { images }, log);
    const call = (method: string, path: string) =>
      request({ socketPath: runPaths(dir).control, method, path, agent: false }).on('error', () => {});
    const halfBody = call('POST', '/v1/drives');
    halfBody.setHeader('content-length', 1000);
    halfBody.write('{"image":', () => halfBody.destroy());
    const waits = call('GET', '/v1/images');
    waits.end();
    const signal = await asked.promise;
    waits.destroy();
    await seen.promise;
    t.ok(signal.aborted);
    for (const line of lines)
      t.match(line, { level: 'debug', msg: 'the client of a control request has gone' });
  },
);

t.test('closing lets an answer under way finish', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'lzd-'));
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  const started = Promise.withResolvers<void>();
  const finish = Promise.withResolvers<never[]>();
  const images = () => {
    started.resolve();
    return finish.promise;
  };
  const server = new ControlServer({ images } as unknown as ControlService, LOG);
  await server.listen(runPaths(dir).control);
  const answer = new ControlClient(dir).images();
  await started.promise;
  const closed = server.close(60_000);
  finish.resolve([]);
  t.same(await answer, []);
  await closed;
});

t.test('the socket is for its user alone, whatever the umask', async (t) => {
  const before = process.umask(0);
  t.teardown(() => process.umask(before));
  const { dir } = await serve(t);
  t.equal(statSync(runPaths(dir).control).mode & 0o777, 0o600);
});

t.test('where no daemon is, that is said', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'lzd-'));
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  await t.rejects(new ControlClient(dir).drives(), {
    code: 'UNAVAILABLE',
    message: /no daemon in .*lazydisk serve/,
  });
  await t.rejects(new ControlClient(join(dir, 'none')).drives(), { code: 'UNAVAILABLE' });
});
