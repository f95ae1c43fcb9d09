/** Extended headers: attributes, names in other encodings, records for all entries, and malformed ones. */
import t from 'tap';
import { readEntries } from '../../support/image.ts';
import { packEntry, packHeader, packPax, packTar, padded } from '../../support/tar.ts';
import { corrupt, END, one } from './reading.ts';

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
