/**
 * Decompression bombs: each limit of an image, at the limit and one past it. A refusal names layer and path, and comes
 * early: the layers of these tests are generators, which record how far they were read.
 */
import t, { type Test } from 'tap';
import { CHUNK_BYTES } from '../../src/format/chunk-id.ts';
import { flatten } from '../../src/image/flatten.ts';
import { type ImageLimits, imageLimits } from '../../src/image/limits.ts';
import { TreeMerge } from '../../src/image/merge.ts';
import type { ImageSource } from '../../src/image/source/image-source.ts';
import { PaxRecords } from '../../src/image/tar/pax.ts';
import type { TarEntry } from '../../src/image/tar/reader.ts';
import { flattenAll, readEntries, sourceOf } from '../support/image.ts';
import { packEntry, packHeader, packPax, packTar, type TarEntrySpec } from '../support/tar.ts';

const END = Buffer.alloc(1024);

/** `sourceOf` with one layer that `make` yields piece by piece; `read` counts the bytes that were requested. */
function generated(make: () => Generator<Buffer>): { source: ImageSource; read: { bytes: number } } {
  const read = { bytes: 0 };
  const [layer] = sourceOf([[]]).layers;
  const open = async function* () {
    for (const bytes of make()) {
      read.bytes += bytes.length;
      yield bytes;
    }
  };
  return { source: { ...sourceOf([[]]), layers: [{ ...layer!, open }] }, read };
}

/** The body of an extended header. */
function bodyOf(records: [string, string][]): Buffer {
  const header = packPax(records);
  return header.subarray(512, 512 + Number.parseInt(header.toString('latin1', 124, 135), 8));
}

const limited = (limits: Partial<ImageLimits>): { limits: ImageLimits } => ({
  limits: { ...imageLimits(), ...limits },
});

/** Checks that `layers` are accepted at `limit`, and refused when the limit of that name is one less. */
async function atTheLimit(
  t: Test,
  layers: (TarEntrySpec[] | Buffer)[],
  [name, limit]: [keyof ImageLimits, number],
  refusal: { code: string; message: RegExp },
): Promise<void> {
  await t.resolves(flattenAll(sourceOf(layers), limited({ [name]: limit })), 'at the limit');
  await t.rejects(flattenAll(sourceOf(layers), limited({ [name]: limit - 1 })), refusal, 'one past it');
}

t.test('the bytes that all layers together unpack to are limited', async (t) => {
  const base = packTar([{ name: 'a', body: Buffer.alloc(CHUNK_BYTES, 1) }]);
  const top = packTar([{ name: 'b' }, { name: '.wh.a', body: Buffer.alloc(10 * CHUNK_BYTES) }]);
  await atTheLimit(t, [base, top], ['inputBytes', base.length + top.length], {
    code: 'UNSUPPORTED',
    message: /^layer 2 of 2 .*unpack to more than the limit .*--max-input/,
  });
});

t.test('a file whose stated size is too large is refused before it is read', async (t) => {
  const zeroes = Buffer.alloc(2 ** 20);
  const { source, read } = generated(function* () {
    yield packHeader({
      name: 'zero',
      typeflag: '0',
      patch: (block) => {
        // 3 TiB in base 256.
        block.fill(0, 124, 136);
        block[124] = 0x80;
        block.writeUIntBE(3 * 2 ** 40, 130, 6);
      },
    });
    for (;;) yield zeroes;
  });
  await t.rejects(
    flatten(source, async () => {}),
    {
      code: 'UNSUPPORTED',
      message: /^layer 1 of 1 .*: path "zero": the layers unpack to more than the limit \(137438953472 bytes/,
    },
  );
  t.ok(read.bytes <= 2 ** 20);
});

t.test('endless entries stop at the limit, and so do endless zeroes after the archive', async (t) => {
  const entry = packEntry({ name: 'same' });
  const many = generated(function* () {
    for (;;) yield entry;
  });
  const refusal = { code: 'UNSUPPORTED', message: /--max-input/ };
  await t.rejects(
    flatten(many.source, async () => {}, limited({ inputBytes: 2 ** 20 })),
    refusal,
  );
  t.ok(many.read.bytes <= 2 ** 20 + entry.length);
  const behind = generated(function* () {
    for (;;) yield END;
  });
  await t.rejects(
    flatten(behind.source, async () => {}, limited({ inputBytes: 2 ** 20 })),
    refusal,
  );
  t.ok(behind.read.bytes <= 2 ** 20 + END.length);
});

t.test(
  'the chunks of a sparse file are limited, although the archive holds only one byte of each',
  async (t) => {
    const pieces = Array.from({ length: 5 }, (_, at) => [at * CHUNK_BYTES, 1]);
    const sparse: TarEntrySpec = {
      name: 'sparse',
      body: '12345',
      pax: [
        ['GNU.sparse.size', String(5 * CHUNK_BYTES)],
        ['GNU.sparse.map', pieces.flat().join(',')],
      ],
    };
    await atTheLimit(t, [[sparse]], ['inputBytes', 5 * CHUNK_BYTES], {
      code: 'NO_SPACE',
      message: /^layer 1 of 1 .*: path "sparse": the image has more than 2621439 bytes of data \(--max-input/,
    });
  },
);

t.test('the entries of all layers together are limited, including hidden ones', async (t) => {
  const layers = [
    [{ name: 'a' }, { name: 'a' }],
    [{ name: '.wh.a' }, { name: 'last' }],
  ];
  await atTheLimit(t, layers, ['entries', 4], {
    code: 'UNSUPPORTED',
    message: /^layer 2 of 2 .*: path "last": the layers have more than 3 entries \(--max-entries/,
  });
});

t.test('the names in the tree are limited, including implied directories but not hidden names', async (t) => {
  const deep = [{ name: 'a/b/c/d/e/f' }];
  const refusal = {
    code: 'UNSUPPORTED',
    message: /^layer 1 of 1 .*: path "a\/b\/c\/d\/e\/f": the image has more than 5 names \(--max-entries/,
  };
  await atTheLimit(t, [deep], ['entries', 6], refusal);
  const hidden = [deep, [{ name: '.wh.a' }], deep, [{ name: '.wh.a' }], deep];
  await t.resolves(flattenAll(sourceOf(hidden), limited({ entries: 6 })));
});

t.test(
  'the memory of the tree is limited: names, targets and attributes, until a layer hides them',
  async (t) => {
    const bombs: Record<string, (at: number) => TarEntrySpec> = {
      names: (at) => ({ name: `${at}`.padEnd(255, 'n') }),
      targets: (at) => ({ name: `${at}`, type: 'symlink', target: `${at}`.padEnd(4000, 't') }),
      attributes: (at) => ({ name: `${at}`, xattrs: { 'user.x': `${at}`.padEnd(3900, 'x') } }),
      directories: (at) => ({ name: `${at}/` }),
      extents: (at) => ({
        name: `${at}`,
        body: '123456',
        pax: [
          ['GNU.sparse.size', String(11 * CHUNK_BYTES)],
          ['GNU.sparse.map', Array.from({ length: 6 }, (_, n) => [2 * n * CHUNK_BYTES, 1]).join(',')],
        ],
      }),
    };
    const treeBytes = 100_000;
    for (const [name, bomb] of Object.entries(bombs)) {
      const { source, read } = generated(function* () {
        for (let at = 0; at < 1000; at++) yield packEntry(bomb(at));
      });
      await t.rejects(
        flatten(source, async () => {}, limited({ treeBytes })),
        {
          code: 'UNSUPPORTED',
          message: /: path "[0-9][^"]*".*: names, link targets, .* more than 100000 bytes .*--max-entries/,
        },
        name,
      );
      t.ok(read.bytes < 1_000_000, `${name}: ${read.bytes} bytes were read`);
      const layer = Array.from({ length: 10 }, (_, at) => bomb(at));
      const hidden = Array.from({ length: 20 }, () => [layer, [{ name: '.wh..wh..opq' }]]).flat();
      await t.resolves(
        flattenAll(sourceOf(hidden), limited({ treeBytes })),
        `${name}: hidden entries do not count`,
      );
    }
  },
);

t.test('a limit of more entries than any build has memory for is refused', async (t) => {
  t.equal(imageLimits({ entries: 8_000_000 }).treeBytes, 8_000_000 * 512);
  t.throws(() => imageLimits({ entries: 8_000_001 }), { code: 'USAGE', message: /--max-entries/ });
});

t.test('equal sets of attributes are kept once', async (t) => {
  const xattrs = { 'user.x': 'x'.repeat(3900), 'security.selinux': 'label' };
  const layer = Array.from({ length: 1000 }, (_, at) => ({ name: `${at}`, xattrs }));
  const flat = await flattenAll(sourceOf([layer]), limited({ treeBytes: 1000 * 500 }));
  t.equal(flat.at('1')!.xattrs, flat.at('999')!.xattrs);
  t.same([...flat.at('7')!.xattrs.keys()].sort(), ['security.selinux', 'user.x']);
  const other = await flattenAll(
    sourceOf([
      [
        { name: 'a', xattrs: { 'user.x': 'y\0z' } },
        { name: 'b', xattrs: { 'user.x': 'y' } },
      ],
    ]),
  );
  t.equal(other.at('a')!.xattrs.get('user.x')!.toString(), 'y\0z');
  t.equal(other.at('b')!.xattrs.get('user.x')!.toString(), 'y');
});

t.test('attributes that do not fit an ext4 inode are refused where they are read', async (t) => {
  // One block: a header of 32 bytes, an entry of 16 and the name, four bytes for the end of the list.
  const fits = 4096 - 32 - 16 - 4 - 4;
  const file = (bytes: number) => [{ name: 'f', xattrs: { 'user.x': Buffer.alloc(bytes) } }];
  await t.resolves(flattenAll(sourceOf([file(fits)])));
  for (const bytes of [fits + 1, 60_000]) {
    await t.rejects(flattenAll(sourceOf([file(bytes), [{ name: '.wh.f' }]])), {
      code: 'NO_SPACE',
      message: /^layer 1 of 2 .*: path "f": its extended attributes do not fit/,
    });
  }
});

t.test('a hundred thousand global records are not copied for each entry', async (t) => {
  // Copying them for each entry would take minutes, and the test would time out.
  let records = '';
  for (let at = 0; records.length < 1024 * 1024 - 20; at++) {
    records += `11 ${at.toString(36).padStart(5, '0')}=1\n`;
  }
  const globals = new PaxRecords();
  globals.add(Buffer.from(records));
  globals.add(bodyOf([['SCHILY.xattr.user.label', 'shared']]));
  const own = bodyOf([['mtime', '1']]);
  for (let at = 0; at < 100_000; at++) {
    const entry = new PaxRecords(globals);
    entry.add(own);
    if (entry.xattrs() !== globals.xattrs() || entry.get('00000')?.length !== 1) t.fail('a copy');
  }
  t.pass('done');
});

t.test('the records of an entry override the global ones', async (t) => {
  const globals: [string, string][] = [
    ['SCHILY.xattr.user.label', 'shared'],
    ['RHT.security.selinux', 'label'],
    ['mtime', '7'],
    // These describe a single entry, so they are ignored in a global header.
    ['path', 'wrong'],
    ['GNU.sparse.offset', '1'],
  ];
  const tar = Buffer.concat([
    packPax(globals, 'g'),
    packEntry({ name: 'plain' }),
    packEntry({ name: 'own', xattrs: { 'user.own': '1' }, pax: [['RHT.security.selinux', '']] }),
    packEntry({ name: 'other', xattrs: { 'user.label': 'other' }, pax: [['mtime', '']], mtime: 5 }),
    packPax([['mtime', '9']], 'g'),
    packEntry({ name: 'later' }),
    END,
  ]);
  const flat = await flattenAll(sourceOf([tar]));
  const seen = (name: string) => {
    const { xattrs, mtimeNs } = flat.at(name)!;
    return [[...xattrs].map(([key, value]) => `${key}=${value}`), Number(mtimeNs) / 1e9];
  };
  t.same(seen('plain'), [['user.label=shared', 'security.selinux=label'], 7]);
  t.same(seen('own'), [['user.label=shared', 'user.own=1'], 7]);
  t.same(seen('other'), [['user.label=other', 'security.selinux=label'], 5]);
  t.same(seen('later'), [['user.label=shared', 'security.selinux=label'], 9]);
});

t.test('repeated opaque markers do not visit the names again', async (t) => {
  // If each marker visited each name, it would take minutes, and the test would time out.
  const [plain] = await readEntries(packEntry({ name: 'x' }));
  const merge = new TreeMerge(imageLimits());
  const put = (name: string) => merge.apply({ ...(plain as unknown as TarEntry), name }, []);
  merge.beginLayer();
  put('d/e/below');
  put('d/below');
  merge.beginLayer();
  for (let at = 0; at < 100_000; at++) put(`d/e/${at}`);
  for (let at = 0; at < 50_000; at++) {
    put('d/e/.wh..wh..opq');
    put('d/.wh..wh..opq');
  }
  put('d/e/late');
  put('d/.wh..wh..opq');
  const d = merge.root.children.get('d')!;
  t.same([...d.children.keys()], ['e']);
  const { children } = d.children.get('e')!;
  t.equal(children.size, 100_001);
  t.ok(children.has('late') && !children.has('below'));
});

t.test('the names looked up for one path through symlinks are limited', async (t) => {
  // The entry has 3 names, the symlink's target 2 and the given number of `.`.
  const layers = (dots: number): TarEntrySpec[] => [
    { name: 'to/', type: 'directory' },
    { name: 'one', type: 'symlink', target: `${'./'.repeat(dots)}two` },
    { name: 'two', type: 'symlink', target: `${'./'.repeat(2040)}to` },
    { name: 'one/x/y' },
  ];
  const used = 1 + 1 + 1 + 2040 + 1 + 1;
  const flat = await flattenAll(sourceOf([layers(2000)]));
  t.ok(flat.at('to/x/y'));
  t.ok(used + 2040 <= 4096);
  const looped = layers(2040);
  looped.splice(3, 0, { name: 'to/again', type: 'symlink', target: `/${'./'.repeat(100)}one` });
  await t.rejects(flattenAll(sourceOf([[...looped.slice(0, 4), { name: 'to/again/x' }]])), {
    code: 'CORRUPT',
    message: /^layer 1 of 1 .*: path "to\/again\/x": a path through symlinks with more than 4096 names/,
  });
});
