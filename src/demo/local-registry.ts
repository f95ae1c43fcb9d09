/**
 * A registry of the demo's own on loopback (Debian's docker-registry), so that the build can do what a user's does. Images
 * are pushed over the OCI distribution protocol, as `docker push` does it. Spec: OCI distribution-spec 1.1, "Push".
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

const START_TRIES = 400;
const START_PAUSE_MS = 25;

export class LocalRegistry {
  /** `HOST:PORT`. */
  readonly host: string;
  readonly #child: ChildProcess;

  private constructor(host: string, child: ChildProcess) {
    this.host = host;
    this.#child = child;
  }

  /** With its data and its configuration in `directory`. Rejects if it does not start. */
  static async start(directory: string): Promise<LocalRegistry> {
    const host = `127.0.0.1:${await freePort()}`;
    // It reads YAML, of which JSON is a part.
    const configuration = {
      version: 0.1,
      log: { level: 'error', accesslog: { disabled: true } },
      storage: { filesystem: { rootdirectory: resolve(directory, 'data') } },
      http: { addr: host },
    };
    await writeFile(join(directory, 'config.yml'), JSON.stringify(configuration));
    const child = spawn('docker-registry', ['serve', join(directory, 'config.yml')], {
      stdio: 'ignore',
      // It takes settings from variables that begin with REGISTRY_, too.
      env: { PATH: process.env.PATH },
    });
    const failed = once(child, 'error').then(([error]) => Promise.reject(error));
    failed.catch(() => undefined);
    const registry = new LocalRegistry(host, child);
    for (let tries = 0; tries < START_TRIES && child.exitCode === null; tries++) {
      const answer = await Promise.race([registry.#ask('').catch(() => undefined), failed]);
      if (answer) return registry;
      await sleep(START_PAUSE_MS);
    }
    await registry.stop();
    throw new Error('docker-registry did not start');
  }

  /** Pushes the only image of an OCI layout, but for what is there already. */
  async push(layout: string, repository: string, tag: string): Promise<void> {
    const index = JSON.parse(await readFile(join(layout, 'index.json'), 'utf8'));
    const [{ digest, mediaType }] = index.manifests;
    const blobs = join(layout, 'blobs/sha256');
    for (const hex of await readdir(blobs)) {
      if (`sha256:${hex}` === digest) continue;
      const place = `${repository}/blobs/sha256:${hex}`;
      if ((await this.#ask(place, { method: 'HEAD' })).ok) continue;
      const upload = await this.#expect(`${repository}/blobs/uploads/`, { method: 'POST' });
      const to = new URL(upload.headers.get('location') ?? '', `http://${this.host}`);
      to.searchParams.set('digest', `sha256:${hex}`);
      await this.#expect(to, { method: 'PUT', body: await readFile(join(blobs, hex)) });
    }
    const body = await readFile(join(blobs, digest.slice('sha256:'.length)));
    const headers = { 'content-type': mediaType };
    await this.#expect(`${repository}/manifests/${tag}`, { method: 'PUT', headers, body });
  }

  async stop(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    this.#child.kill('SIGTERM');
    await once(this.#child, 'exit');
  }

  async #expect(place: string | URL, request: RequestInit): Promise<Response> {
    const answer = await this.#ask(place, request);
    if (!answer.ok) throw new Error(`the registry answered ${answer.status} to ${request.method}`);
    return answer;
  }

  async #ask(place: string | URL, request: RequestInit = {}): Promise<Response> {
    const answer = await fetch(new URL(place, `http://${this.host}/v2/`), request);
    await answer.arrayBuffer();
    return answer;
  }
}

/** One that was free a moment ago. */
async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  server.close();
  await once(server, 'close');
  return typeof address === 'object' && address ? address.port : 0;
}
