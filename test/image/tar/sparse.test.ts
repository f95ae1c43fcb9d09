/** Sparse files: the four encodings of GNU tar, and maps that do not add up. */
import t from 'tap';
import { contentOfEntry, readEntries } from '../../support/image.ts';
import { packEntry, packHeader, packTar, padded } from '../../support/tar.ts';
import { corrupt, END, one } from './reading.ts';

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
