/**
 * An NBD client that sends what no real client would: options and requests with random parts, truncated and changed at
 * random.
 */
import { randomBytes, randomInt } from 'node:crypto';
import net from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { OPTION, type Request } from '../../src/export/nbd/protocol.ts';
import { contextQuery, goData, optionBytes, writeRequest } from './nbd-client.ts';

/** Opens one connection after the other, forever. Some of the requests are for the disk of `drive`, of `diskBytes`. */
export async function fuzzNbd(socket: string, drive: string, diskBytes: number): Promise<never> {
  for (;;) {
    const parts = [flags(), ...several(5, () => option(drive))];
    if (randomInt(2) > 0) {
      parts.push(optionBytes(OPTION.structuredReply), optionBytes(OPTION.go, goData(drive)));
      parts.push(...several(40, () => request(diskBytes)));
    }
    await send(
      socket,
      parts.map((part) => (randomInt(4) > 0 ? part : changed(part))),
    );
  }
}

function several<T>(countMax: number, make: () => T): T[] {
  return Array.from({ length: randomInt(countMax + 1) }, make);
}

function oneOf<T>(...choices: readonly T[]): T {
  return choices[randomInt(choices.length)]!;
}

function flags(): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(oneOf(3, 3, 3, 1, 0, 0xffffffff));
  return bytes;
}

function option(drive: string): Buffer {
  const noise = () => randomBytes(randomInt(200));
  const { structuredReply, setMetaContext, listMetaContext, list, abort, info, go } = OPTION;
  return oneOf(
    () => optionBytes(list),
    () => optionBytes(structuredReply),
    () => optionBytes(setMetaContext, contextQuery(drive, ['base:allocation', noise().toString('latin1')])),
    () =>
      optionBytes(
        listMetaContext,
        contextQuery(
          drive,
          several(300, () => 'x'),
        ),
      ),
    () =>
      optionBytes(
        info,
        goData(
          drive,
          several(9, () => randomInt(65_536)),
        ),
      ),
    () => optionBytes(randomInt(2 ** 32), noise()),
    () => optionBytes(abort, noise()),
    () => optionBytes(go, goData(oneOf(drive, ''))),
    noise,
  )();
}

function request(diskBytes: number): Buffer {
  const fields: Request = {
    flags: oneOf(0, 0, 0, randomInt(65_536)),
    type: oneOf(0, 0, 0, randomInt(12)),
    cookieHigh: 1,
    cookieLow: 2,
    offset: oneOf(randomInt(diskBytes), randomInt(diskBytes), randomInt(2 ** 47)),
    lengthBytes: oneOf(0, 1, 4096, 70_000, 2 ** 21, 33 * 2 ** 20, 0xffffffff, randomInt(2 ** 32)),
  };
  return writeRequest(fields);
}

function changed(bytes: Buffer): Buffer {
  const copy = Buffer.from(bytes);
  for (let n = randomInt(4); n > 0 && copy.length > 0; n--) copy[randomInt(copy.length)] = randomInt(256);
  return copy;
}

/** Sends the bytes, reads some of the replies or none, and disconnects. */
async function send(path: string, parts: readonly Buffer[]): Promise<void> {
  const socket = net.connect({ path });
  const closed = new Promise((resolve) => socket.on('close', resolve));
  socket.on('error', () => {});
  for (const part of parts) socket.write(part);
  if (randomInt(3) > 0) socket.resume();
  await sleep(randomInt(1, 60));
  socket.destroy();
  await closed;
}
