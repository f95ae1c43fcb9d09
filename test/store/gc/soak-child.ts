/**
 * `ROLE URL KEYFILE`: one machine of the soak, which repeats its role until it is killed. It prints a line that starts
 * with FAULT for each fault, and a line that starts with `done` for each completed run.
 */
import { hash, randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { errorText, LazydiskError } from '../../../src/errors.ts';
import { CHUNK_BYTES, type ChunkId } from '../../../src/format/chunk-id.ts';
import { loadKeyFile } from '../../../src/keys/key-file.ts';
import { KeyRing } from '../../../src/keys/key-ring.ts';
import { purge } from '../../../src/store/gc/purge.ts';
import { rotate } from '../../../src/store/gc/rotate.ts';
import { sweep } from '../../../src/store/gc/sweep.ts';
import { openStore } from '../../../src/store/open.ts';
import { openManifest } from '../../../src/store/open-manifest.ts';
import type { RootStore } from '../../../src/store/roots/root-store.ts';
import { putEntries } from '../../support/stored-disk.ts';

const NAMES = ['a', 'b', 'c', 'd'];
const CONTENTS = 30;

const [role, url, keyFile] = process.argv.slice(2) as [string, string, string];
const key = await loadKeyFile(keyFile);
const ring = KeyRing.of(key);

const pick = <T>(items: readonly T[]): T => items[Math.floor(Math.random() * items.length)]!;

/** One of a few contents, in the root's epoch, so that builds share chunks. */
function chunkOf(content: number, epoch: number): { id: ChunkId; sealed: Buffer } {
  const sealed = Buffer.alloc(3000, `content ${content} in epoch ${epoch} `);
  return { id: hash('sha256', sealed) as ChunkId, sealed };
}

async function build(store: RootStore): Promise<void> {
  const writer = await store.writer();
  const contents = [...Array(CONTENTS).keys()].filter(() => Math.random() < 0.4);
  const entries = [];
  for (const [index, content] of contents.entries()) {
    const { id, sealed } = chunkOf(content, writer.epoch);
    if (!(await writer.hasChunk(id, sealed.length))) await writer.putChunk(id, sealed);
    entries.push({ index, ref: { id, key: randomBytes(32), sealedBytes: sealed.length } });
  }
  await putEntries(writer, key, { name: pick(NAMES), diskBytes: CONTENTS * CHUNK_BYTES, entries });
}

async function retag(store: RootStore): Promise<void> {
  const writer = await store.writer();
  if (Math.random() < 0.4) return writer.removeReference(pick(NAMES));
  // Any image that ever existed, which may be garbage by now.
  const digests = (await store.history()).flatMap(({ digest }) => digest ?? []);
  if (digests.length > 0) await writer.putReference(pick(NAMES), pick(digests));
}

/** A drive: it can read what its name means when it is attached, for the retention. */
async function drive(store: RootStore): Promise<void> {
  const attachedMs = Date.now();
  const reference = await store.getReference(pick(NAMES));
  if (!reference) return;
  const manifest = await openManifest(store, reference.name, reference.digest, ring);
  const endMs = attachedMs + store.parts.policy.retentionMs * (0.2 + 0.7 * Math.random());
  while (Date.now() < endMs && manifest.storedChunks > 0) {
    const { id } = manifest.ref(Math.floor(Math.random() * manifest.storedChunks));
    const bytes = await store.getChunk(id);
    if (!bytes || hash('sha256', bytes) !== id)
      process.stdout.write(
        `FAULT a drive of ${reference.digest}: chunk ${id} is ${bytes ? 'wrong' : 'gone'}\n`,
      );
    await sleep(200);
  }
}

const ROLES: Record<string, (store: RootStore) => Promise<unknown>> = {
  build,
  retag,
  drive,
  rotate: ({ parts }) => rotate(parts),
  sweep: ({ parts }) => sweep(parts),
  purge: ({ parts }) => purge(parts),
};

for (;;) {
  const store = await openStore(url);
  try {
    await ROLES[role]!(store);
    process.stdout.write(`done ${role}\n`);
  } catch (error) {
    // Refusals are fine; missing or broken objects are not.
    const code = error instanceof LazydiskError ? error.code : 'none';
    const isRefusal =
      ['BUSY', 'TIMEOUT', 'NOT_FOUND'].includes(code) && !errorText(error).includes('no manifest,');
    process.stdout.write(`${isRefusal ? 'refused' : 'FAULT'} ${role}: ${code} ${errorText(error)}\n`);
  }
  await store.close();
  await sleep(Math.random() * (role === 'rotate' ? 8_000 : 600));
}
