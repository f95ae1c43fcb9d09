/** A store with corrupt data, as a guest sees it: an I/O error that names the cause, never a wrong byte. */
import { execFile } from 'node:child_process';
import { readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { open, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import t from 'tap';
import type { DriveInfo, DriveStat } from '../../src/daemon/api.ts';
import { CHUNK_BYTES } from '../../src/format/chunk-id.ts';
import { diskWorkplace, TestDaemon, type Workplace } from '../support/daemon.ts';
import { skipWithout, skipWithoutFuse } from '../support/tools.ts';

const run = promisify(execFile);

/** The file in the store that holds chunk `id`. */
function chunkFile({ storeDir }: Workplace, id: string): string {
  const names = readdirSync(storeDir, { recursive: true, encoding: 'utf8' });
  const found = names.find((name) => name.endsWith(id) && statSync(join(storeDir, name)).isFile());
  if (!found) throw new Error(`no file of chunk ${id}`);
  return join(storeDir, found);
}

async function readAt(file: string, chunk: number): Promise<Buffer> {
  const handle = await open(file);
  try {
    const { buffer, bytesRead } = await handle.read(Buffer.alloc(8192), 0, 8192, chunk * CHUNK_BYTES);
    return buffer.subarray(0, bytesRead);
  } finally {
    await handle.close();
  }
}

const LIES: Readonly<
  Record<string, { damage(file: string, other: string): void; code: string; cause: RegExp }>
> = {
  flipped: {
    damage(file) {
      const bytes = readFileSync(file);
      bytes[1000]! ^= 0x10;
      writeFileSync(file, bytes);
    },
    code: 'CORRUPT',
    cause: /origin: bad copy \(its SHA-256 is not its id/,
  },
  truncated: {
    damage: (file) => writeFileSync(file, readFileSync(file).subarray(0, 5000)),
    code: 'CORRUPT',
    cause: /origin: bad copy \(its SHA-256 is not its id, 5000 bytes instead of \d+/,
  },
  swapped: {
    damage: (file, other) => writeFileSync(file, readFileSync(other)),
    code: 'CORRUPT',
    cause: /origin: bad copy/,
  },
  missing: { damage: (file) => rmSync(file), code: 'NOT_FOUND', cause: /origin: not there/ },
};

for (const [lie, { damage, code, cause }] of Object.entries(LIES)) {
  t.test(
    `an object at the origin that is ${lie} is an error with a name, and good again when it is mended`,
    async (t) => {
      const place = await diskWorkplace(t, 8);
      const { manifest } = place.image;
      const index = manifest.indexOf(1);
      const { id } = manifest.ref(1);
      const file = chunkFile(place, id);
      const good = readFileSync(file);
      damage(file, chunkFile(place, manifest.ref(4).id));

      const daemon = await TestDaemon.start(t, place);
      const drive = await daemon.ask<DriveInfo>('attach', 'app:1');
      const hasFuse = !skipWithoutFuse(t);
      if (hasFuse) {
        await t.rejects(readAt(drive.fuse!, index), { code: 'EIO' });
        t.ok((await readAt(drive.fuse!, 0)).equals(place.disk.subarray(0, 8192)), 'what is whole is given');
      }
      if (!skipWithout(t, 'nbdcopy')) {
        await t.rejects(run('nbdcopy', [drive.nbd, join(place.dir, 'copy')]), /Input\/output error/);
      }
      const stat = await daemon.ask<DriveStat>('stat', drive.name);
      t.ok(stat.errors > 0);
      t.match(stat.lastError, { code, text: cause });
      const logged = await daemon.logged(({ msg }) => msg === 'read failed');
      for (const text of [stat.lastError!.text, String(logged.cause)]) {
        t.match(text, new RegExp(`drive app-1, chunk index ${index}: chunk ${id}`));
        t.match(text, cause);
      }

      writeFileSync(file, good);
      if (hasFuse) {
        t.ok(
          (await readAt(drive.fuse!, index)).equals(
            place.disk.subarray(index * CHUNK_BYTES).subarray(0, 8192),
          ),
        );
      }
    },
  );
}

t.test('a disk cache that was flipped in every record gives no wrong byte and heals', async (t) => {
  if (skipWithout(t, 'nbdcopy')) return;
  const place = await diskWorkplace(t, 16);
  const copy = join(place.dir, 'copy');
  const first = await TestDaemon.start(t, place);
  await run('nbdcopy', [(await first.ask<DriveInfo>('attach', 'app:1')).nbd, copy]);
  await first.stop();

  // One bit every 64 KiB: each record of half a MiB has some, and headers may too.
  const chunks = join(place.cache, 'chunks');
  const bytes = readFileSync(chunks);
  for (let at = 70_000; at < bytes.length; at += 65_536) bytes[at]! ^= 1;
  writeFileSync(chunks, bytes);

  const daemon = await TestDaemon.start(t, place);
  const drive = await daemon.ask<DriveInfo>('attach', 'app:1');
  await run('nbdcopy', [drive.nbd, copy]);
  t.ok(place.disk.equals(await readFile(copy)));
  const stat = await daemon.ask<DriveStat>('stat', drive.name);
  t.equal(stat.errors, 0);
  t.equal(stat.tiers.find(({ tier }) => tier === 'origin')?.chunks, 12, 'all was fetched anew');
});

t.test('no key and no plaintext is in a log, a socket answer or the cache', async (t) => {
  if (skipWithout(t, 'nbdcopy')) return;
  const place = await diskWorkplace(t, 8);
  const daemon = await TestDaemon.start(t, place, ['--log-level', 'trace']);
  const drive = await daemon.ask<DriveInfo>('attach', 'app:1');
  await run('nbdcopy', [drive.nbd, join(place.dir, 'copy')]);
  const said = JSON.stringify([
    daemon.log,
    await daemon.ask('stat', drive.name),
    await daemon.ask('inspect', 'app:1'),
  ]);
  await daemon.stop();
  const { wrapKey, domainSecret } = JSON.parse(readFileSync(place.key, 'utf8')) as Record<string, string>;
  const chunkKey = Buffer.from(place.image.manifest.ref(0).key);
  for (const secret of [wrapKey!, domainSecret!, chunkKey.toString('hex'), chunkKey.toString('base64')]) {
    t.notOk(said.includes(secret));
  }
  const cached = readFileSync(join(place.cache, 'chunks'));
  t.equal(cached.indexOf(place.disk.subarray(0, 64)), -1);
  t.equal(cached.indexOf(chunkKey), -1);
});
