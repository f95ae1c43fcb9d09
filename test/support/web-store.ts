/** A store in a directory behind a web server that can be told to answer nothing about some of its objects. */
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import type { Test } from 'tap';

export interface WebStore {
  /** What `--store` takes. */
  readonly url: string;
  /** From now on whoever asks for a path that `what` matches waits. */
  hang(what: RegExp): void;
  /** Whoever waits is answered, and whoever asks. */
  mend(): void;
}

/** Serves `dir`, to the test's end. */
export async function serveStore(t: Test, dir: string): Promise<WebStore> {
  const held: (() => void)[] = [];
  let hanging: RegExp | undefined;
  const server = createServer((asked, answer) => {
    const { pathname } = new URL(asked.url!, 'http://store');
    const serve = () =>
      void readFile(join(dir, decodeURI(pathname))).then(
        (bytes) => answer.writeHead(200, { 'content-length': bytes.length }).end(bytes),
        () => answer.writeHead(404).end(),
      );
    if (hanging?.test(pathname)) held.push(serve);
    else serve();
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => {
    server.close();
    server.closeAllConnections();
  });
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`,
    hang(what) {
      hanging = what;
    },
    mend() {
      hanging = undefined;
      for (const serve of held.splice(0)) serve();
    },
  };
}
