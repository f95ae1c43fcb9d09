/** Entries of every kind and age of tar, limits, and damage. */
import t from 'tap';
import { LazydiskError } from '../../../src/errors.ts';
import { StreamInput } from '../../../src/image/tar/input.ts';
import { readTar } from '../../../src/image/tar/reader.ts';
import { readEntries, streamOf } from '../../support/image.ts';
import { packEntry, packHeader, packPax, packTar, padded } from '../../support/tar.ts';
import { corrupt, END, one } from './reading.ts';

t.test('every kind of entry is read, with owner, mode and device numbers', async (t) => {
  const entries = await readEntries(
    packTar([
      { name: 'f', body: 'data', mode: 0o4755, uid: 1000, gid: 2000, mtime: 1_700_000_000 },
      { name: 'd/', mode: 0o1777 },
      { name: 'l', type: 'link', target: 'f' },
      { name: 's', type: 'symlink', target: '../x' },
      { name: 'c', type: 'char', major: 5, minor: 1 },
      { name: 'b', type: 'block', major: 8, minor: 65_536 },
      { name: 'p', type: 'fifo' },
      { name: 'contiguous', typeflag: '7', body: 'c' },
    ]),
  );
  t.same(
    entries.map((entry) => [entry.name, entry.kind, entry.target, entry.rdevMajor, entry.rdevMinor]),
    [
      ['f', 'file', '', 0, 0],
      ['d/', 'directory', '', 0, 0],
      ['l', 'link', 'f', 0, 0],
      ['s', 'symlink', '../x', 0, 0],
      ['c', 'char', '', 5, 1],
      ['b', 'block', '', 8, 65_536],
      ['p', 'fifo', '', 0, 0],
      ['contiguous', 'file', '', 0, 0],
    ],
  );
  t.match(entries[0], { mode: 0o4755, uid: 1000, gid: 2000, mtimeNs: 1_700_000_000_000_000_000n });
  t.equal(entries[0]!.stored.toString(), 'data');
  t.equal(entries[1]!.mode, 0o1777);
});

t.test('a body is read completely, in whatever pieces the stream arrives', async (t) => {
  const body = Buffer.from(Array.from({ length: 3000 }, (_, at) => at % 251));
  const tar = packTar([
    { name: 'a', body, xattrs: { 'user.x': Buffer.alloc(700, 7) } },
    { name: 'b', body: 'b' },
  ]);
  for (const pieceBytes of [1, 7, 511, 512, 513, 4096]) {
    const entries = await readEntries(tar, pieceBytes);
    t.same(entries[0]!.stored, body, `pieces of ${pieceBytes}`);
    t.equal(entries[0]!.xattrs.get('user.x')?.length, 700);
    t.equal(entries[1]!.stored.toString(), 'b');
  }
});

t.test('an unread or partly read body is skipped', async (t) => {
  const tar = packTar([
    { name: 'a', body: Buffer.alloc(5000, 1) },
    { name: 'b', body: Buffer.alloc(5000, 2) },
    { name: 'c', body: 'end' },
  ]);
  const names: string[] = [];
  for await (const entry of readTar(new StreamInput(streamOf(tar, 100), 1e6))) {
    names.push(entry.name);
    if (entry.name === 'b') await entry.body().next();
    if (entry.name === 'c') t.equal((await entry.whole()).toString(), 'end');
  }
  t.same(names, ['a', 'b', 'c']);
});

t.test('long names and long links are read: ustar prefix, GNU and PAX', async (t) => {
  const name = `${'d/'.repeat(100)}file`;
  const target = `../${'t'.repeat(300)}`;
  const prefixed = await one(
    Buffer.concat([
      packHeader({
        name: 'file',
        typeflag: '0',
        patch: (block) => block.write(`pre/${'x'.repeat(140)}`, 345),
      }),
      END,
    ]),
  );
  t.equal(prefixed.name, `pre/${'x'.repeat(140)}/file`);
  const gnu = await one(
    Buffer.concat([
      packHeader({ name: '././@LongLink', typeflag: 'K', sizeBytes: target.length + 1 }),
      padded(Buffer.from(`${target}\0`)),
      packHeader({ name: '././@LongLink', typeflag: 'L', sizeBytes: name.length + 1 }),
      padded(Buffer.from(`${name}\0`)),
      packHeader({ name: name.slice(0, 100), target: target.slice(0, 100), typeflag: '2' }),
      END,
    ]),
  );
  t.match(gnu, { name, target, kind: 'symlink' });
  t.match(await one(packTar([{ name, type: 'symlink', target }])), { name, target, kind: 'symlink' });
});

t.test('big and negative numbers are read: base-256 and PAX', async (t) => {
  const base256 = (block: Buffer, at: number, lengthBytes: number, value: bigint) => {
    let rest = value & ((1n << BigInt(lengthBytes * 8)) - 1n);
    for (let byte = at + lengthBytes - 1; byte >= at; byte--, rest >>= 8n) block[byte] = Number(rest & 0xffn);
    block[at]! |= 0x80;
  };
  const header = packHeader({
    name: 'f',
    typeflag: '5',
    patch: (block) => {
      base256(block, 108, 8, 4_294_967_295n);
      base256(block, 116, 8, 3_000_000_000n);
      base256(block, 136, 12, -1_000_000_000n);
    },
  });
  t.match(await one(Buffer.concat([header, END])), {
    uid: 4_294_967_295,
    gid: 3_000_000_000,
    mtimeNs: -1_000_000_000_000_000_000n,
  });
  for (const mtime of [
    -1_500_000_001n,
    1n,
    -1n,
    1_700_000_000_123_456_789n,
    4_000_000_000_000_000_000n * 3n,
  ]) {
    const entry = await one(packTar([{ name: 'f', uid: 4_294_967_294, mtime }]));
    t.equal(entry.mtimeNs, mtime);
    t.equal(entry.uid, 4_294_967_294);
  }
  const finer = await one(packTar([{ name: 'f', pax: [['mtime', '-7.1234567899']] }]));
  t.equal(finer.mtimeNs, -7_123_456_789n, 'times are truncated to nanoseconds');
});

t.test('a size over 8 GiB is accepted, and a body that ends before it is an error', async (t) => {
  const nineGiB = 9 * 2 ** 30;
  const tar = Buffer.concat([
    packPax([['size', String(nineGiB)]]),
    packHeader({ name: 'big', typeflag: '0' }),
    Buffer.alloc(4096),
  ]);
  await corrupt(t, tar, /path "big": the tar ends after 4096 of 9663676416 bytes/);
});

t.test('links and directories have no body even if they state a size', async (t) => {
  const entries = await readEntries(
    Buffer.concat([
      packEntry({ name: 'f', body: 'x' }),
      packHeader({ name: 'l', target: 'f', typeflag: '1', sizeBytes: 1000 }),
      packHeader({ name: 'd/', typeflag: '5', sizeBytes: 1000 }),
      packEntry({ name: 'g', body: 'y' }),
      END,
    ]),
  );
  t.same(
    entries.map(({ name, sizeBytes }) => [name, sizeBytes]),
    [
      ['f', 1],
      ['l', 0],
      ['d/', 0],
      ['g', 1],
    ],
  );
});

t.test('V7 archives are read: no magic, a slash marks a directory, old forms of numbers', async (t) => {
  const v7 = (name: string, typeflag: string) =>
    packHeader({
      name,
      typeflag,
      patch: (block) => {
        block.fill(0, 257, 512);
        block.write('   644 \0', 100);
        block.write('     17 ', 108);
      },
    });
  const [directory, file] = await readEntries(Buffer.concat([v7('old/', '\0'), v7('old/f', '\0'), END]));
  t.match(directory, { kind: 'directory', mode: 0o644, uid: 0o17 });
  t.match(file, { kind: 'file', mode: 0o644 });
});

t.test('checksums over signed bytes are accepted', async (t) => {
  const header = packHeader({ name: Buffer.from('caf\xe9\xff', 'latin1'), typeflag: '0' });
  const sum = Number.parseInt(header.toString('latin1', 148, 154), 8) - 2 * 256;
  header.write(sum.toString(8).padStart(6, '0'), 148);
  t.equal((await one(Buffer.concat([header, END]))).name, 'caf\xe9\xff');
  header.write((sum - 256).toString(8).padStart(6, '0'), 148);
  await corrupt(t, Buffer.concat([header, END]), /wrong checksum/);
});

t.test('input over a limit is refused before it is read', async (t) => {
  const huge = packHeader({ name: 'pax', typeflag: 'x', sizeBytes: 2 ** 32 });
  await corrupt(t, huge, /extended headers of more than/, 'UNSUPPORTED');
  const half = packPax([['comment', Buffer.alloc(600 * 1024, 'c')]]);
  await corrupt(t, Buffer.concat([half, half]), /extended headers of more than/, 'UNSUPPORTED');
  const global = packPax([['comment', Buffer.alloc(600 * 1024, 'c')]], 'g');
  await corrupt(t, Buffer.concat([global, global]), /extended headers of more than/, 'UNSUPPORTED');
  await corrupt(
    t,
    packTar([{ name: 'f', xattrs: { 'user.big': Buffer.alloc(65_537) } }]),
    /"user\.big" is 65537 bytes/,
    'UNSUPPORTED',
  );
  const many = Object.fromEntries(Array.from({ length: 257 }, (_, at) => [`user.${at}`, 'x']));
  await corrupt(
    t,
    packTar([{ name: 'f', xattrs: many }]),
    /257 extended attributes; the maximum is 256/,
    'UNSUPPORTED',
  );
  await corrupt(t, packTar([{ name: 'f', xattrs: { [`user.${'n'.repeat(300)}`]: 'x' } }]), /name Linux/);
  await corrupt(t, packTar([{ name: 'x'.repeat(4097) }]), /a name of 4097 bytes/);
  await corrupt(
    t,
    packTar([{ name: 's', type: 'symlink', target: 'x'.repeat(4097) }]),
    /target of 4097 bytes/,
  );
  const fileTooBig: [string, string][] = [['size', String(17 * 2 ** 40)]];
  await corrupt(t, packTar([{ name: 'f', pax: fileTooBig }]), /a file of/, 'UNSUPPORTED');
  await corrupt(t, packTar([{ name: 'c', type: 'char', major: 4096 }]), /device major of 4096/);
});

t.test('damage is detected, and the error says where', async (t) => {
  const tar = packTar([
    { name: 'a', body: 'x' },
    { name: 'b', body: Buffer.alloc(2000) },
  ]);
  const flipped = Buffer.from(tar);
  flipped[1024 + 3] = 0x41;
  await corrupt(t, flipped, /tar at byte 1024: a header block with a wrong checksum/);
  await corrupt(t, tar.subarray(0, 1024 + 200), /tar at byte 1024: a truncated header/);
  await corrupt(t, tar.subarray(0, 1536 + 999), /path "b": the tar ends after 999 of 2000 bytes/);
  await corrupt(t, tar.subarray(0, 1536 + 2010), /path "b": the tar ends inside it/);
  const lone = Buffer.concat([packEntry({ name: 'a' }), Buffer.alloc(512), packEntry({ name: 'b' }), END]);
  await corrupt(t, lone, /lone block of zeroes/);
  await corrupt(t, packPax([['path', 'x']]), /after an extended header/);
  await corrupt(t, packPax([['path', 'x'.repeat(600)]]).subarray(0, 600), /ends inside the extended header/);
  await corrupt(t, packTar([{ name: 'f', typeflag: 'Q' }]), /path "f": an entry of type "Q"/, 'UNSUPPORTED');
});

t.test('an archive may end without its end marker, or with half of one', async (t) => {
  const entry = packEntry({ name: 'a', body: 'x' });
  for (const tail of [0, 512, 1024, 10_240]) {
    const entries = await readEntries(Buffer.concat([entry, Buffer.alloc(tail)]));
    t.equal(entries.length, 1, `${tail} bytes of zeroes`);
  }
  t.same(await readEntries(Buffer.alloc(0)), []);
});

t.test('bytes after the end marker are not read as entries', async (t) => {
  const tar = Buffer.concat([packTar([{ name: 'a' }]), packTar([{ name: 'b' }])]);
  t.same(
    (await readEntries(tar)).map(({ name }) => name),
    ['a'],
  );
});

t.test('a stream that exceeds its limit is refused', async (t) => {
  const input = new StreamInput(streamOf(packTar([{ name: 'a', body: Buffer.alloc(100_000) }]), 512), 50_000);
  const error = await readAll(input).catch((error: unknown) => error);
  t.ok(error instanceof LazydiskError);
  t.match(error, { code: 'UNSUPPORTED', message: /more than the limit .50000 bytes/ });
});

async function readAll(input: StreamInput): Promise<void> {
  for await (const entry of readTar(input)) t.ok(entry.name);
}
