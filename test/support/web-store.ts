/** A store in a directory behind a web server that can hang on some of its objects. */
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { join } from 'node:path';
import type { Test } from 'tap';
import { listen } from './http-server.ts';

export interface WebStore {
  /** The value for `--store`. */
  readonly url: string;
  /** From now on, requests for paths that `what` matches hang. */
  hang(what: RegExp): void;
  /** Hanging and later requests are served again. */
  mend(): void;
}

/** Serves `dir` until the end of the test. */
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
  return {
    url: `http://127.0.0.1:${await listen(t, server)}/`,
    hang(what) {
      hanging = what;
    },
    mend() {
      hanging = undefined;
      for (const serve of held.splice(0)) serve();
    },
  };
}
