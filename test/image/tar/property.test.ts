/** The tar reader, tested with an independent writer, and with bytes that no writer produces. */
import assert from 'node:assert/strict';
import { Readable } from 'node:stream';
import fc from 'fast-check';
import t from 'tap';
import { pack } from 'tar-stream';
import { LazydiskError } from '../../../src/errors.ts';
import { StreamInput } from '../../../src/image/tar/input.ts';
import { readTar } from '../../../src/image/tar/reader.ts';
import { readEntries, streamOf } from '../../support/image.ts';
import { packTar, type TarEntrySpec } from '../../support/tar.ts';

const component = fc.string({ minLength: 1, maxLength: 120, unit: 'grapheme' }).filter((name) => {
  return !name.includes('/') && !name.includes('\0') && name !== '.' && name !== '..';
});
const path = fc.array(component, { minLength: 1, maxLength: 4 }).map((parts) => parts.join('/'));
const body = fc.uint8Array({ maxLength: 3000 }).map((bytes) => Buffer.from(bytes));

t.test('archives that tar-stream packs are read', async (t) => {
  const entry = fc.record({
    name: path,
    body,
    mode: fc.integer({ min: 1, max: 0o7777 }),
    uid: fc.integer({ min: 0, max: 0o777777 }),
    mtime: fc.integer({ min: 0, max: 2 ** 31 - 1 }),
    link: fc.option(path),
  });
  await fc.assert(
    fc.asyncProperty(
      fc.array(entry, { maxLength: 8 }),
      fc.integer({ min: 1, max: 2000 }),
      async (wanted, pieceBytes) => {
        const packer = pack();
        for (const { name, body, mode, uid, mtime, link } of wanted) {
          const common = { name, mode, uid, mtime: new Date(mtime * 1000) };
          if (link === null) packer.entry({ ...common, size: body.length }, body);
          else packer.entry({ ...common, type: 'symlink', linkname: link });
        }
        packer.finalize();
        const parts: Buffer[] = [];
        for await (const part of packer as unknown as Readable) parts.push(part as Buffer);
        const entries = await readEntries(Buffer.concat(parts), pieceBytes);
        assert.deepEqual(
          entries.map((one) => [
            Buffer.from(one.name, 'latin1').toString(),
            one.mode,
            one.uid,
            one.mtimeNs,
            Buffer.from(one.target, 'latin1').toString(),
            one.stored.toString('hex'),
          ]),
          wanted.map((one) => [
            one.name,
            one.mode,
            one.uid,
            BigInt(one.mtime) * 1_000_000_000n,
            one.link ?? '',
            one.link === null ? one.body.toString('hex') : '',
          ]),
        );
      },
    ),
    { numRuns: 60 },
  );
  t.pass('for all inputs');
});

t.test('names, xattrs and times of any bytes survive', async (t) => {
  const bytes = (maxLength: number) =>
    fc.uint8Array({ minLength: 1, maxLength }).map((array) => Buffer.from(array));
  const name = bytes(300).filter((one) => !one.includes(0) && one.at(-1) !== 0x2f);
  await fc.assert(
    fc.asyncProperty(
      name,
      fc.dictionary(fc.stringMatching(/^user\.[a-z]{1,20}$/), bytes(300), { maxKeys: 5 }),
      fc.bigInt({ min: -(10n ** 19n), max: 10n ** 19n }),
      fc.integer({ min: 0, max: 2 ** 32 - 1 }),
      async (name, xattrs, mtime, uid) => {
        const [entry] = await readEntries(packTar([{ name, xattrs, mtime, uid }]), 333);
        assert.equal(entry?.name, name.toString('latin1'));
        assert.deepEqual(new Map(entry?.xattrs), new Map(Object.entries(xattrs)));
        assert.equal(entry?.mtimeNs, mtime);
        assert.equal(entry?.uid, uid);
      },
    ),
    { numRuns: 150 },
  );
  t.pass('for all inputs');
});

const seedEntries: TarEntrySpec[] = [
  { name: 'dir/', mtime: -1_500_000_000n },
  { name: 'dir/file', body: Buffer.alloc(1500, 'f'), xattrs: { 'user.x': Buffer.from([0, 1, 2]) } },
  { name: `${'long/'.repeat(40)}name`, type: 'symlink', target: 't'.repeat(200) },
  {
    name: 'sparse',
    body: Buffer.from(`${'1\n4096\n3\n'.padEnd(512, '\0')}abc`),
    pax: [
      ['GNU.sparse.major', '1'],
      ['GNU.sparse.minor', '0'],
      ['GNU.sparse.realsize', '9000'],
    ],
  },
  {
    name: 'sparse0',
    body: 'abc',
    pax: [
      ['GNU.sparse.size', '9000'],
      ['GNU.sparse.map', '0,1,4096,2'],
    ],
  },
  { name: 'device', type: 'char', major: 5, minor: 1 },
  { name: 'hard', type: 'link', target: 'dir/file' },
];

/** Corrects the checksum of each block that looks like a header, so that mutations pass it. */
function resum(tar: Buffer): void {
  for (let at = 0; at + 512 <= tar.length; at += 512) {
    if (tar.toString('latin1', at + 257, at + 262) !== 'ustar') continue;
    tar.fill(0x20, at + 148, at + 156);
    let sum = 0;
    for (let byte = at; byte < at + 512; byte++) sum += tar[byte]!;
    tar.write(`${sum.toString(8).padStart(6, '0')}\0 `, at + 148);
  }
}

t.test(
  'mutated archives yield entries or a LazydiskError, and never more bytes than they hold',
  async (t) => {
    const seed = packTar(seedEntries);
    const mutation = fc.record({
      at: fc.nat(seed.length - 1),
      bytes: fc.oneof(
        fc.uint8Array({ minLength: 1, maxLength: 16 }),
        fc.constantFrom(
          Buffer.from('77777777777'),
          Buffer.from([0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
          Buffer.from('S'),
          Buffer.from('x'),
          Buffer.from('g'),
          Buffer.from('L'),
          Buffer.from('999999999 '),
        ),
      ),
    });
    await fc.assert(
      fc.asyncProperty(
        fc.array(mutation, { minLength: 1, maxLength: 6 }),
        fc.option(fc.nat(seed.length)),
        fc.boolean(),
        async (mutations, cutBytes, fixed) => {
          let tar = Buffer.from(seed);
          for (const { at, bytes } of mutations) tar.set(bytes.subarray(0, tar.length - at), at);
          if (fixed) resum(tar);
          if (cutBytes !== null) tar = tar.subarray(0, cutBytes);
          let bodyBytes = 0;
          let entries = 0;
          try {
            for await (const entry of readTar(new StreamInput(streamOf(tar, 700), tar.length))) {
              entries++;
              for await (const part of entry.body()) bodyBytes += part.length;
            }
          } catch (error) {
            if (!(error instanceof LazydiskError)) throw error;
          }
          assert.ok(bodyBytes <= tar.length && entries <= tar.length / 512);
        },
      ),
      { numRuns: 1500 },
    );
    t.pass('for all inputs');
  },
);

t.test('random bytes yield entries or a LazydiskError', async (t) => {
  await fc.assert(
    fc.asyncProperty(fc.uint8Array({ minLength: 1, maxLength: 5000 }), async (bytes) => {
      const input = new StreamInput(Readable.from([Buffer.from(bytes)], { objectMode: true }), 1e6);
      try {
        for await (const entry of readTar(input)) await entry.whole();
      } catch (error) {
        assert.ok(error instanceof LazydiskError);
      }
    }),
    { numRuns: 300 },
  );
  t.pass('for all inputs');
});
