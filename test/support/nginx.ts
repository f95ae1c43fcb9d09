/** A real nginx on loopback for tests, serving one directory. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { freePort } from './memcached.ts';

export class Nginx {
  readonly port: number;
  readonly #dir: string;
  readonly #child: ChildProcess;

  private constructor(port: number, dir: string, child: ChildProcess) {
    this.port = port;
    this.#dir = dir;
    this.#child = child;
  }

  /** Serves `root`; `extra` is configuration for the server's block. */
  static async start(root: string, extra = ''): Promise<Nginx> {
    const [port, dir] = [await freePort(), await mkdtemp(join(tmpdir(), 'lazydisk-nginx-'))];
    const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'];
    const user = process.getuid?.() === 0 ? 'user root;' : '';
    await writeFile(
      join(dir, 'nginx.conf'),
      `${user} daemon off; worker_processes 1; pid ${dir}/pid; error_log ${dir}/error.log;
      events { worker_connections 256; }
      http {
        access_log off;
        ${temporary.map((name) => `${name}_temp_path ${dir}/${name};`).join('\n')}
        server { listen 127.0.0.1:${port}; root ${root}; ${extra} }
      }\n`,
    );
    const child = spawn('nginx', ['-e', join(dir, 'error.log'), '-c', join(dir, 'nginx.conf')], {
      stdio: 'ignore',
    });
    const nginx = new Nginx(port, dir, child);
    for (let tries = 0; tries < 200; tries++) {
      if (await fetch(`http://127.0.0.1:${port}/`).catch(() => undefined)) return nginx;
      await sleep(25);
    }
    await nginx.close();
    throw new Error(`nginx on port ${port} does not respond`);
  }

  async close(): Promise<void> {
    if (this.#child.exitCode === null && this.#child.signalCode === null) {
      this.#child.kill('SIGTERM');
      await once(this.#child, 'exit');
    }
    await rm(this.#dir, { recursive: true, force: true });
  }
}
