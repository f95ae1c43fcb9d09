/** Real memcached processes on loopback for tests, and a proxy that can misbehave in front of one. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import net, { type AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import type { NodeAddress } from '../../src/chunk/fleet/node.ts';

/** A port that was free a moment ago. */
export async function freePort(): Promise<number> {
  const server = net.createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

/** Whether every thread of a process is stopped (proc(5), the field after the name in `stat`). */
function isStopped(pid: number): boolean {
  const tasks = `/proc/${pid}/task`;
  return readdirSync(tasks).every((task) => /\) T /.test(readFileSync(`${tasks}/${task}/stat`, 'utf8')));
}

export class Memcached {
  readonly port: number;
  #child: ChildProcess | undefined;
  readonly #flags: readonly string[];

  constructor(port: number, flags: readonly string[] = []) {
    this.port = port;
    this.#flags = flags;
  }

  /** Starts `count` nodes and waits until they respond. */
  static async cluster(count: number, flags: readonly string[] = []): Promise<Memcached[]> {
    const nodes: Memcached[] = [];
    for (let n = 0; n < count; n++) nodes.push(new Memcached(await freePort(), flags));
    await Promise.all(nodes.map((node) => node.start()));
    return nodes;
  }

  get address(): NodeAddress {
    return { name: `127.0.0.1:${this.port}`, host: '127.0.0.1', port: this.port, weight: 1 };
  }

  async start(): Promise<void> {
    const user = process.getuid?.() === 0 ? ['-u', 'nobody'] : [];
    const common = ['-l', '127.0.0.1', '-p', String(this.port), '-U', '0', '-m', '256', '-t', '1'];
    this.#child = spawn('memcached', [...user, ...common, ...this.#flags], { stdio: 'ignore' });
    for (let tries = 0; tries < 200; tries++) {
      const answered = await new Promise<boolean>((resolve) => {
        const socket = net.connect(this.port, '127.0.0.1', () => resolve(true));
        socket.on('error', () => resolve(false));
        socket.on('connect', () => socket.destroy());
      });
      if (answered) return;
      await sleep(25);
    }
    throw new Error(`memcached on port ${this.port} does not respond`);
  }

  /** Stops it: it accepts connections, and never responds. Resolves when all its threads have stopped. */
  async pause(): Promise<void> {
    const pid = this.#child?.pid;
    if (pid === undefined) return;
    process.kill(pid, 'SIGSTOP');
    while (!isStopped(pid)) await sleep(1);
  }

  resume(): void {
    this.#child?.kill('SIGCONT');
  }

  async kill(): Promise<void> {
    const child = this.#child;
    this.#child = undefined;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    child.kill('SIGKILL');
    await once(child, 'exit');
  }

  /** Sends raw commands and resolves with the responses; those after a lost connection are missing. */
  async raw(text: string | Buffer): Promise<string> {
    const socket = net.connect(this.port, '127.0.0.1');
    socket.on('error', () => {});
    socket.write(text);
    // The response to a no-op comes last.
    socket.write('mn\r\n');
    let answer = '';
    for await (const bytes of socket) {
      answer += (bytes as Buffer).toString('latin1');
      if (answer.endsWith('MN\r\n')) break;
    }
    socket.destroy();
    return answer.replace(/MN\r\n$/, '');
  }
}

/** What the proxy does to the responses of its node. */
export interface ProxyFaults {
  /** Added to a response with this probability. */
  delayMs: number;
  delayShare: number;
  /** Accepts and never responds. */
  silent: boolean;
  /** Probability that a piece of a response resets the connection. */
  resetShare: number;
}

/** A TCP proxy in front of `port`; `faults` may be changed at any time. */
export async function startProxy(port: number): Promise<{
  port: number;
  faults: ProxyFaults;
  close(): Promise<void>;
}> {
  const faults: ProxyFaults = { delayMs: 0, delayShare: 0, silent: false, resetShare: 0 };
  const sockets = new Set<net.Socket>();
  const server = net.createServer((front) => {
    const back = net.connect(port, '127.0.0.1');
    front.setNoDelay(true);
    back.setNoDelay(true);
    for (const socket of [front, back]) {
      sockets.add(socket);
      socket.on('error', () => {});
      socket.on('close', () => {
        sockets.delete(socket);
        front.destroy();
        back.destroy();
      });
    }
    front.on('data', (bytes) => back.write(bytes));
    // Responses keep their order: a delayed one delays those after it, as on a slow machine.
    let before = Promise.resolve();
    back.on('data', (bytes) => {
      if (faults.silent) return;
      if (Math.random() < faults.resetShare) {
        front.resetAndDestroy();
        return;
      }
      const delayMs = Math.random() < faults.delayShare ? faults.delayMs : 0;
      before = before
        .then(() => (delayMs > 0 ? sleep(delayMs) : undefined))
        .then(() => void front.write(bytes));
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    port: (server.address() as AddressInfo).port,
    faults,
    close: async () => {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, 'close');
    },
  };
}
