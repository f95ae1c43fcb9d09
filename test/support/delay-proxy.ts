/**
 * A connection with latency, for benchmarks: everything is passed on with a delay, in order and at the machine's full
 * bandwidth. A separate process, which exits with its parent: `node delay-proxy.ts PORT MS` passes on to PORT on
 * loopback, MS later each way, and prints the port that it listens on.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';

/** The most bytes in transit one way; beyond that the source waits. */
const HELD_BYTES_MAX = 16 * 1024 * 1024;

export class DelayProxy {
  readonly endpoint: string;
  readonly #child: ChildProcess;

  private constructor(child: ChildProcess, port: number) {
    this.#child = child;
    this.endpoint = `http://127.0.0.1:${port}`;
  }

  /** Starts one in front of `port` on loopback. */
  static async start(port: number, roundTripMs: number): Promise<DelayProxy> {
    const words = [import.meta.filename, String(port), String(roundTripMs / 2)];
    const child = spawn(process.execPath, words, { stdio: ['pipe', 'pipe', 'inherit'] });
    const ended = once(child, 'exit').then(() => {
      throw new Error('the delay proxy does not start');
    });
    const [line] = await Promise.race([once(child.stdout!, 'data'), ended]);
    ended.catch(() => undefined);
    return new DelayProxy(child, Number(line));
  }

  async close(): Promise<void> {
    this.#child.kill();
    await once(this.#child, 'exit');
  }
}

/** Passes on everything from `from` to `to`, `delayMs` later, including its end. */
function pass(from: Socket, to: Socket, delayMs: number): void {
  const held: { readonly dueMs: number; readonly bytes: Buffer | undefined }[] = [];
  let heldBytes = 0;
  let isTimed = false;
  const send = (): void => {
    to.cork();
    while (held.length > 0 && held[0]!.dueMs <= performance.now()) {
      const { bytes } = held.shift()!;
      heldBytes -= bytes?.length ?? 0;
      if (bytes) to.write(bytes);
      else to.end();
    }
    to.uncork();
    if (heldBytes < HELD_BYTES_MAX) from.resume();
    isTimed = held.length > 0;
    if (isTimed) setTimeout(send, Math.max(0, held[0]!.dueMs - performance.now()));
  };
  const hold = (bytes: Buffer | undefined): void => {
    held.push({ dueMs: performance.now() + delayMs, bytes });
    heldBytes += bytes?.length ?? 0;
    if (heldBytes >= HELD_BYTES_MAX) from.pause();
    if (!isTimed) setTimeout(send, delayMs);
    isTimed = true;
  };
  from.on('data', hold);
  from.on('end', () => hold(undefined));
  from.on('error', () => to.destroy());
}

if (import.meta.main) {
  const [port, delayMs] = process.argv.slice(2).map(Number) as [number, number];
  const server = createServer({ noDelay: true, allowHalfOpen: true }, (near) => {
    const far = connect({ host: '127.0.0.1', port, noDelay: true, allowHalfOpen: true });
    pass(near, far, delayMs);
    pass(far, near, delayMs);
  });
  server.listen(0, '127.0.0.1', () => {
    process.stdout.write(`${(server.address() as AddressInfo).port}\n`);
  });
  process.stdin.on('end', () => process.exit()).resume();
}
