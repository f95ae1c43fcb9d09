/**
 * A store over HTTP, in a separate process, with faulty objects: hung ones never respond, slow ones respond after a
 * second, bad ones with an error. `node troubled-store.ts STORE_DIR`; a message says which objects.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

/** How long a read of a slow object takes. */
const SLOW_MS = 1_000;

export type ObjectTrouble = 'hung' | 'bad' | 'slow';

/** By the object's id. */
export type ObjectTroubles = Readonly<Record<string, ObjectTrouble>>;

/** Returns the URL of the store of `storeDir`, which is served until the process is killed. */
export async function serveTroubledStore(
  storeDir: string,
  troubles: ObjectTroubles,
): Promise<{ url: string; server: ChildProcess }> {
  const server = fork(import.meta.filename, [storeDir]);
  server.send(troubles);
  const [url] = (await once(server, 'message')) as [string];
  return { url, server };
}

async function answer(
  path: string,
  response: http.ServerResponse,
  storeDir: string,
  troubles: ObjectTroubles,
) {
  const trouble = troubles[path.split('/').at(-1)!];
  if (trouble === 'hung') return;
  if (trouble === 'slow') await sleep(SLOW_MS);
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
}

if (import.meta.main) {
  process.on('disconnect', () => process.exit());
  const [troubles] = (await once(process, 'message')) as [ObjectTroubles];
  const server = http.createServer((request, response) => {
    const path = decodeURIComponent(request.url!).replace(/^\/store/, '');
    void answer(path, response, process.argv[2]!, troubles);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  process.send!(`http://127.0.0.1:${(server.address() as AddressInfo).port}/store`);
}
