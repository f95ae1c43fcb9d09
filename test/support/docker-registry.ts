/** A real registry on loopback for tests (Debian's docker-registry), and images pushed there by skopeo. */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { freePort } from './memcached.ts';

const exec = promisify(execFile);

/** The htpasswd entry for `alice` with the password `open sesame`. */
export const HTPASSWD = 'alice:$2y$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n';

export interface RegistryConfig {
  /** Its `auth` section; with `htpasswd` the file is HTPASSWD. */
  readonly auth?: 'htpasswd' | { readonly token: Readonly<Record<string, string>> };
  /** Files of a certificate and its key. */
  readonly tls?: { readonly certificate: string; readonly key: string };
  /** A pull-through cache of the registry at this URL. */
  readonly proxyOf?: string;
}

export class DockerRegistry {
  readonly port: number;
  readonly #dir: string;
  readonly #child: ChildProcess;
  readonly #scheme: string;

  private constructor(port: number, dir: string, child: ChildProcess, scheme: string) {
    this.port = port;
    this.#dir = dir;
    this.#child = child;
    this.#scheme = scheme;
  }

  static async start(config: RegistryConfig = {}): Promise<DockerRegistry> {
    const [port, dir] = [await freePort(), await mkdtemp(join(tmpdir(), 'lazydisk-registry-'))];
    const htpasswd = join(dir, 'htpasswd');
    await writeFile(htpasswd, HTPASSWD);
    const auth = config.auth === 'htpasswd' ? { htpasswd: { realm: 'tests', path: htpasswd } } : config.auth;
    // It reads YAML, which includes JSON.
    const document = {
      version: 0.1,
      log: { level: 'error', accesslog: { disabled: true } },
      storage: { filesystem: { rootdirectory: join(dir, 'data') }, delete: { enabled: true } },
      http: { addr: `127.0.0.1:${port}`, secret: 'tests', ...(config.tls && { tls: config.tls }) },
      ...(auth && { auth }),
      ...(config.proxyOf && { proxy: { remoteurl: config.proxyOf } }),
    };
    await writeFile(join(dir, 'config.yml'), JSON.stringify(document));
    // It takes settings from variables that begin with REGISTRY_, which includes podman's REGISTRY_AUTH_FILE.
    const env = { PATH: process.env.PATH };
    const child = spawn('docker-registry', ['serve', join(dir, 'config.yml')], { stdio: 'ignore', env });
    const registry = new DockerRegistry(port, dir, child, config.tls ? 'https' : 'http');
    for (let tries = 0; tries < 400 && child.exitCode === null; tries++) {
      if (await registry.#answers()) return registry;
      await sleep(25);
    }
    await registry.close();
    throw new Error(`docker-registry on port ${port} does not respond`);
  }

  get host(): string {
    return `127.0.0.1:${this.port}`;
  }

  /** The directory of its stored files. */
  get dataDir(): string {
    return join(this.#dir, 'data');
  }

  /** `skopeo copy FROM docker://HOST/NAME`. */
  async push(from: string, name: string, ...flags: string[]): Promise<void> {
    const words = [
      'copy',
      '--quiet',
      '--dest-tls-verify=false',
      ...flags,
      from,
      `docker://${this.host}/${name}`,
    ];
    await exec('skopeo', words);
  }

  /** Puts a manifest unchanged under a name; returns the status. */
  async putManifest(
    repository: string,
    version: string,
    document: unknown,
    mediaType: string,
  ): Promise<number> {
    const url = `${this.#scheme}://${this.host}/v2/${repository}/manifests/${version}`;
    const body = typeof document === 'string' ? document : JSON.stringify(document);
    const response = await fetch(url, { method: 'PUT', headers: { 'content-type': mediaType }, body });
    await response.arrayBuffer();
    return response.status;
  }

  async close(): Promise<void> {
    if (this.#child.exitCode === null && this.#child.signalCode === null) {
      this.#child.kill('SIGKILL');
      await once(this.#child, 'exit');
    }
    await rm(this.#dir, { recursive: true, force: true });
  }

  /** A registry with TLS also responds to plain HTTP. */
  async #answers(): Promise<boolean> {
    const response = await fetch(`http://${this.host}/v2/`).catch(() => undefined);
    await response?.arrayBuffer();
    return response !== undefined;
  }
}
