/**
 * Guests that are bad neighbours, in a separate process, so that they affect others only through the daemon: `node
 * bad-neighbours.ts NBD_SOCKET KIND …`. What each kind of guest does is in `BEHAVIOURS`.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { CHUNK_BYTES } from '../../src/format/chunk-id.ts';
import { NbdClient } from './nbd-client.ts';
import { fuzzNbd } from './nbd-fuzz.ts';

export const READ_BYTES = 4096;

/** Drives of these names, and how many chunks the disk of each has. */
export const TROUBLED = { hostile: 48, hung: 12, bad: 2, slow: 12 } as const;

type Troubled = keyof typeof TROUBLED;

export type BadNeighbour = Troubled | 'fuzz' | 'burn';

/** Resolves when they have begun; they continue until the process is killed. */
export async function startBadNeighbours(
  socket: string,
  kinds: readonly BadNeighbour[],
): Promise<ChildProcess> {
  const child = fork(import.meta.filename, [socket, ...kinds]);
  const ended = once(child, 'exit').then(([code]) => {
    throw new Error(`the bad neighbours exited with ${code}`);
  });
  await Promise.race([once(child, 'message'), ended]);
  ended.catch(() => {});
  return child;
}

/** Each resolves when its guest has been refused, or is waiting. */
const BEHAVIOURS: Record<BadNeighbour, (socket: string) => Promise<void>> = {
  /** As many requests as a guest can have in flight, over several connections. */
  async hostile(socket) {
    for (let n = 0; n < 4; n++) await hammer(socket, 'hostile', 64);
  },
  hung: (socket) => hammer(socket, 'hung', 32),
  slow: (socket) => hammer(socket, 'slow', 32),
  async bad(socket) {
    const client = await NbdClient.open({ path: socket }, 'bad');
    const first = await client.request({ type: 0, offset: 0, lengthBytes: READ_BYTES });
    if (!first.error) throw new Error('the bad object was read');
    client.close();
    await hammer(socket, 'bad', 4);
  },
  /** Sends what no real client would, over a dozen connections. */
  async fuzz(socket) {
    for (let n = 0; n < 12; n++) void fuzzNbd(socket, 'hostile', TROUBLED.hostile * CHUNK_BYTES);
  },
  /** Uses a processor without any request to the daemon: shows what the kernel's scheduling alone costs the others. */
  async burn() {
    setImmediate(() => {
      for (;;);
    });
  },
};

async function hammer(socket: string, drive: Troubled, depth: number): Promise<void> {
  const client = await NbdClient.open({ path: socket }, drive);
  // One object of the bad image is bad.
  const chunks = drive === 'bad' ? 1 : TROUBLED[drive];
  const send = () => {
    const offset = randomInt(chunks) * CHUNK_BYTES + randomInt(16) * READ_BYTES;
    client.send({ type: 0, offset, lengthBytes: READ_BYTES });
  };
  for (let n = 0; n < depth; n++) send();
  const goOn = async () => {
    for (;;) {
      await client.answer();
      // A guest that gets an error retries, but not as fast as the connection allows.
      if (drive !== 'hostile') await sleep(5);
      send();
    }
  };
  void goOn();
}

if (import.meta.main) {
  process.on('disconnect', () => process.exit());
  const [socket, ...kinds] = process.argv.slice(2) as [string, ...BadNeighbour[]];
  for (const kind of kinds) await BEHAVIOURS[kind](socket);
  process.send!('begun');
}
