/** Pushes from a slab whose slots are constantly evicted and refilled. */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import { ChunkMemory } from '../../../src/chunk/memory.ts';
import { ChunkReader } from '../../../src/chunk/reader.ts';
import { Drive } from '../../../src/drive/drive.ts';
import { CHUNK_BYTES } from '../../../src/format/chunk-id.ts';
import { CountingObserver, MapTier, makeImage } from '../../support/tiers.ts';
import { mountDrives, sh, skipWithoutPushes } from './mounted.ts';

const READERS = 4;
const image = await makeImage('abc.defga.hijklmnopq.rstuvw');

for (const slots of [2, 8]) {
  t.test(`with ${slots} slots, every reader gets the drive's bytes, and all reads finish`, async (t) => {
    if (await skipWithoutPushes(t)) return;
    const memory = new ChunkMemory({ capacityBytes: slots * CHUNK_BYTES });
    const reader = new ChunkReader({
      memory,
      tiers: [new MapTier('origin', image.chunks)],
      observer: new CountingObserver(),
    });
    const name = 'vm';
    const drive = new Drive({
      name,
      image: { digest: 'sha256:test', manifest: image },
      reader,
      readTimeoutMs: 60_000,
    });
    const expected = join(t.testdir(), 'expected');
    await writeFile(expected, image.disk);
    const { mount } = await mountDrives(t, [drive]);
    t.teardown(async () => {
      drive.close();
      await reader.close();
    });
    // Page by page with a stride, each reader from another chunk, so that chunks are wanted again after their eviction.
    const walk = `
      pages=$(($(stat -c %s "$2") / 4096))
      at=$(($3 * 128)); count=0
      while [ $count -lt 60 ]; do
        dd if="$1" bs=4k skip=$at count=1 status=none | cmp - "$2" --ignore-initial=0:$((at * 4096)) --bytes=4096 || exit 1
        at=$(((at + 257) % pages)); count=$((count + 1))
      done`;
    const walks = await Promise.all(
      Array.from({ length: READERS }, (_, n) => sh(walk, mount.pathOf(name), expected, `${n}`)),
    );
    walks.push(await sh('cmp "$1" "$2"', mount.pathOf(name), expected));
    for (const { code, stdout, stderr } of walks) t.equal(code, 0, `${stdout}${stderr}`);
    const { pushesSent, pushesFailed } = mount.stats();
    t.ok(pushesSent > 0, `${pushesSent} pushes`);
    t.equal(pushesFailed, 0);
  });
}
