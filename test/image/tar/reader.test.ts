import t, { type Test } from 'tap';
import { LazydiskError } from '../../../src/errors.ts';
import { StreamInput } from '../../../src/image/tar/input.ts';
import { readTar } from '../../../src/image/tar/reader.ts';
import { contentOfEntry, readEntries, streamOf } from '../../support/image.ts';
import { packEntry, packHeader, packPax, packTar, padded } from '../../support/tar.ts';

const END = Buffer.alloc(1024);
const one = async (tar: Buffer) => {
  const [entry, ...more] = await readEntries(tar);
  if (!entry || more.length > 0) throw new Error('want exactly one entry');
  return entry;
};
const corrupt = (t: Test, tar: Buffer, message: RegExp, code = 'CORRUPT') =>
  t.rejects(readEntries(tar), { code, message });

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

t.test('a binary xattr keeps its NULs and bytes that are not UTF-8', async (t) => {
  const capability = Buffer.from('0100000200200000000000000000000000000000', 'hex');
  const binary = Buffer.from([0, 0xff, 0x0a, 0x3d, 0x20, 0xc3, 0x28, 0]);
  const entry = await one(
    packTar([
      {
        name: 'f',
        xattrs: {
          'security.capability': capability,
          'user.bin': binary,
          'user.empty': '',
          'user.key=odd': 'v',
        },
      },
    ]),
  );
  t.same(entry.xattrs.get('security.capability'), capability);
  t.same(entry.xattrs.get('user.bin'), binary);
  t.same(entry.xattrs.get('user.empty'), Buffer.alloc(0));
});

t.test('xattrs of libarchive and Red Hat are read', async (t) => {
  const entry = await one(
    packTar([
      {
        name: 'f',
        pax: [
          ['LIBARCHIVE.xattr.user.a%20b', Buffer.from([0, 1, 255]).toString('base64').replace(/=+$/, '')],
          ['RHT.security.selinux', Buffer.from('system_u:object_r:bin_t:s0\0')],
        ],
      },
    ]),
  );
  t.same(entry.xattrs.get('user.a b'), Buffer.from([0, 1, 255]));
  t.same(entry.xattrs.get('security.selinux'), Buffer.from('system_u:object_r:bin_t:s0\0'));
});

t.test('names that are not UTF-8 are kept, in the header and in PAX with hdrcharset=BINARY', async (t) => {
  const latin = Buffer.from('caf\xe9', 'latin1');
  const long = Buffer.concat([Buffer.alloc(150, 'x'), Buffer.from([0xff, 0xfe])]);
  const [short, pax] = await readEntries(
    packTar([{ name: latin }, { name: long, pax: [['hdrcharset', 'BINARY']] }]),
  );
  t.equal(short!.name, latin.toString('latin1'));
  t.equal(pax!.name, long.toString('latin1'));
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

t.test(
  'a global header applies to all following entries, and an entry’s own records override it',
  async (t) => {
    const [a, b, c] = await readEntries(
      Buffer.concat([
        packPax(
          [
            ['mtime', '5.5'],
            ['uid', '77'],
            ['comment', 'x'],
            ['path', 'never'],
            ['size', '99'],
          ],
          'g',
        ),
        packEntry({ name: 'a', body: 'A' }),
        packEntry({ name: 'b', pax: [['uid', '78']] }),
        packPax([['uid', '']], 'g'),
        packEntry({ name: 'c' }),
        END,
      ]),
    );
    t.match(a, { name: 'a', mtimeNs: 5_500_000_000n, uid: 77, sizeBytes: 1 });
    t.match(b, { name: 'b', mtimeNs: 5_500_000_000n, uid: 78 });
    t.match(c, { name: 'c', mtimeNs: 5_500_000_000n, uid: 0 });
  },
);

t.test('global headers without extended attributes keep the shared attributes of entries', async (t) => {
  const [a, b, c, d] = await readEntries(
    Buffer.concat([
      packPax([['SCHILY.xattr.user.all', 'yes']], 'g'),
      packEntry({ name: 'a' }),
      packPax([['comment', 'x']], 'g'),
      packEntry({ name: 'b', pax: [['mtime', '1']] }),
      packPax([['SCHILY.xattr.user.more', '']], 'g'),
      packEntry({ name: 'c' }),
      packEntry({ name: 'd', pax: [['SCHILY.xattr.user.own', '1']] }),
      END,
    ]),
  );
  t.equal(b?.xattrs, a?.xattrs, 'they are not copied');
  t.same([...a!.xattrs.keys()], ['user.all']);
  t.same([...c!.xattrs.keys()], ['user.all', 'user.more']);
  t.same([...d!.xattrs.keys()], ['user.all', 'user.more', 'user.own']);
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

t.test('a sparse file is the same in all four encodings', async (t) => {
  const content = Buffer.alloc(100_000);
  content.write('head', 0);
  content.write('middle', 40_960);
  const stored = Buffer.concat([Buffer.from('head'), Buffer.from('middle')]);
  const map = [0, 4, 40_960, 6, 100_000, 0];
  const oct = (value: number) => `${value.toString(8).padStart(11, '0')}\0`;
  const oldGnu = Buffer.concat([
    packHeader({
      name: 'sparse',
      typeflag: 'S',
      sizeBytes: stored.length,
      patch: (block) => {
        block.write('ustar  \0', 257);
        block.fill(0, 345, 512);
        block.write(map.map(oct).join(''), 386);
        block.write(oct(content.length), 483);
      },
    }),
    padded(stored),
  ]);
  const pax = (records: [string, string][], body: Buffer) =>
    packEntry({
      name: 'GNUSparseFile.1/sparse',
      body,
      pax: [...records, ['GNU.sparse.name', 'sparse']],
    });
  const v00: [string, string][] = [
    ['GNU.sparse.size', '100000'],
    ['GNU.sparse.numblocks', '3'],
  ];
  for (let at = 0; at < map.length; at += 2) {
    v00.push(['GNU.sparse.offset', String(map[at])], ['GNU.sparse.numbytes', String(map[at + 1])]);
  }
  const v01: [string, string][] = [
    ['GNU.sparse.size', '100000'],
    ['GNU.sparse.map', map.join(',')],
  ];
  const v10: [string, string][] = [
    ['GNU.sparse.major', '1'],
    ['GNU.sparse.minor', '0'],
    ['GNU.sparse.realsize', '100000'],
  ];
  const mapBody = padded(Buffer.from(`${[3, ...map].join('\n')}\n`));
  const archives: [string, Buffer][] = [
    ['old GNU', oldGnu],
    ['PAX 0.0', pax(v00, stored)],
    ['PAX 0.1', pax(v01, stored)],
    ['PAX 1.0', pax(v10, Buffer.concat([mapBody, stored]))],
  ];
  for (const [name, archive] of archives) {
    const [entry, next] = await readEntries(Buffer.concat([archive, packEntry({ name: 'next' }), END]));
    t.match(entry, { name: 'sparse', kind: 'file', sizeBytes: 100_000, storedBytes: 10 }, name);
    t.same(contentOfEntry(entry!), content, name);
    t.equal(next!.name, 'next');
  }
});

t.test('old GNU sparse maps continue in extension blocks', async (t) => {
  const oct = (value: number) => `${value.toString(8).padStart(11, '0')}\0`;
  const pairs = Array.from({ length: 30 }, (_, at) => [at * 4096, 1]);
  const extension = Buffer.alloc(1024);
  extension.write(pairs.slice(4, 25).flat().map(oct).join(''), 0);
  extension[504] = 1;
  extension.write(pairs.slice(25).flat().map(oct).join(''), 512);
  const header = packHeader({
    name: 'sparse',
    typeflag: 'S',
    sizeBytes: 30,
    patch: (block) => {
      block.write('ustar  \0', 257);
      block.fill(0, 345, 512);
      block.write(pairs.slice(0, 4).flat().map(oct).join(''), 386);
      block[482] = 1;
      block.write(oct(30 * 4096), 483);
    },
  });
  const entry = await one(Buffer.concat([header, extension, padded(Buffer.alloc(30, 'x')), END]));
  t.equal(entry.segments?.length, 30);
  const content = contentOfEntry(entry);
  t.equal(content.filter((byte) => byte === 0x78).length, 30);
  t.equal(content[29 * 4096], 0x78);
});

t.test('inconsistent sparse maps are refused', async (t) => {
  const sparse = (map: string, size = '1000', body = 'x') =>
    packTar([
      {
        name: 'f',
        body,
        pax: [
          ['GNU.sparse.size', size],
          ['GNU.sparse.map', map],
        ],
      },
    ]);
  await corrupt(t, sparse('10,1,5,0'), /overlap/);
  await corrupt(t, sparse('1000,1'), /exceed the file/);
  await corrupt(t, sparse('0,2'), /match the stored data/);
  await corrupt(t, sparse('0'), /pair up/);
  await corrupt(t, sparse('0,x'), /not a number/);
  await corrupt(t, sparse('0,1', '-5'), /not a number/);
  const unpaired = [['GNU.sparse.numbytes', '1']] as [string, string][];
  await corrupt(t, packTar([{ name: 'f', pax: unpaired }]), /pair up/);
  const later: [string, string][] = [
    ['GNU.sparse.major', '2'],
    ['GNU.sparse.minor', '0'],
  ];
  await corrupt(t, packTar([{ name: 'f', pax: later }]), /after 1\.0/, 'UNSUPPORTED');
  const v10: [string, string][] = [
    ['GNU.sparse.major', '1'],
    ['GNU.sparse.minor', '0'],
    ['GNU.sparse.realsize', '10'],
  ];
  await corrupt(
    t,
    packTar([{ name: 'f', body: '99999999\n', pax: v10 }]),
    /more than 1048576/,
    'UNSUPPORTED',
  );
  await corrupt(
    t,
    packTar([{ name: 'f', body: Buffer.alloc(2000, '1'), pax: v10 }]),
    /a truncated sparse map/,
  );
});

t.test('malformed records are refused', async (t) => {
  const raw = (body: string) =>
    Buffer.concat([
      packHeader({ name: 'pax', typeflag: 'x', sizeBytes: body.length }),
      padded(Buffer.from(body, 'latin1')),
      packEntry({ name: 'f' }),
      END,
    ]);
  for (const body of [
    '99 path=x\n',
    '0 path=x\n',
    '10 path=xx',
    '-1 a=b\n',
    'a=b\n',
    '7 a=b\n',
    '5 =b\n',
    '1e1 a=b\n',
  ]) {
    await corrupt(t, raw(body), /tar at byte 0: an extended header/);
  }
  await corrupt(t, packTar([{ name: 'f', pax: [['uid', '1x']] }]), /path "f": .*uid is not a number/);
  await corrupt(t, packTar([{ name: 'f', pax: [['uid', '4294967296']] }]), /a uid of 4294967296/);
  await corrupt(t, packTar([{ name: 'f', pax: [['mtime', '1,5']] }]), /mtime is not a time/);
  await corrupt(t, packTar([{ name: 'f', pax: [['mtime', '9999999999999999']] }]), /out of range/);
  await corrupt(t, packTar([{ name: 'f', pax: [['path', 'a\0b']] }]), /path contains a NUL/);
  await corrupt(t, packTar([{ name: 'f', pax: [['size', '-1']] }]), /size is not a number/);
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
