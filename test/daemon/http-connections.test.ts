/** An HTTP server that idle connections cannot block. */
import { once } from 'node:events';
import { Agent, get } from 'node:http';
import { connect, type Socket } from 'node:net';
import t, { type Test } from 'tap';
import { createBoundedServer } from '../../src/daemon/http-connections.ts';
import { MetricsServer } from '../../src/daemon/metrics-server.ts';
import { listen } from '../support/http-server.ts';

async function silent(t: Test, port: number): Promise<Socket> {
  const socket = connect(port, '127.0.0.1').on('error', () => {});
  t.teardown(() => socket.destroy());
  await once(socket, 'connect');
  return socket;
}

function status(port: number, agent: Agent | false = false): Promise<number> {
  return new Promise((resolve, reject) => {
    get({ host: '127.0.0.1', port, path: '/metrics', agent }, (response) => {
      response.resume().on('end', () => resolve(response.statusCode!));
    }).on('error', reject);
  });
}

t.test('idle connections, however many, do not keep a scrape out', async (t) => {
  const server = new MetricsServer(async () => ({ contentType: 'text/plain', text: 'up 1\n' }));
  const { port } = await server.listen({ host: '127.0.0.1', port: 0 });
  t.teardown(() => server.close());
  for (let n = 0; n < 300; n++) await silent(t, port);
  for (let n = 0; n < 3; n++) t.equal(await status(port), 200);
});

t.test('the connection that has been idle for longest goes, and none with a request', async (t) => {
  const answer = Promise.withResolvers<void>();
  const server = createBoundedServer(
    { connectionsMax: 2, requestTimeoutMs: 10_000 },
    async (request, response) => {
      if (request.url === '/metrics') await answer.promise;
      response.end('x');
    },
  );
  const port = await listen(t, server);
  const asked = once(server, 'request');
  const busy = status(port);
  await asked;
  const idle = await silent(t, port);
  const next = await silent(t, port);
  await once(idle, 'close');
  t.notOk(next.destroyed);
  const asking = await silent(t, port);
  await once(next, 'close');
  answer.resolve();
  t.equal(await busy, 200, 'the one with a request was kept');
  t.notOk(asking.destroyed);
});

t.test('a connection that is kept alive counts as idle between its requests', async (t) => {
  const server = createBoundedServer({ connectionsMax: 1, requestTimeoutMs: 10_000 }, (_, response) =>
    response.end('x'),
  );
  const port = await listen(t, server);
  const agent = new Agent({ keepAlive: true });
  t.teardown(() => agent.destroy());
  for (let n = 0; n < 3; n++) t.equal(await status(port, agent), 200);
  t.equal(await status(port), 200, 'and makes room');
});

t.test('where all connections have a request, one more is refused', async (t) => {
  const answer = Promise.withResolvers<void>();
  const server = createBoundedServer({ connectionsMax: 1, requestTimeoutMs: 10_000 }, async (_, response) => {
    await answer.promise;
    response.end('x');
  });
  const port = await listen(t, server);
  const asked = once(server, 'request');
  const busy = status(port);
  await asked;
  await t.rejects(status(port));
  answer.resolve();
  t.equal(await busy, 200);
});
