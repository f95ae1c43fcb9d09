import t, { type Test } from 'tap';
import { type Flattened, flattenLayers, type Layer } from '../support/image.ts';
import type { TarEntrySpec } from '../support/tar.ts';

const file = (name: string, body = name): TarEntrySpec => ({ name, body });
const dir = (name: string, more: Partial<TarEntrySpec> = {}): TarEntrySpec => ({
  name: `${name}/`,
  type: 'directory',
  ...more,
});
const link = (name: string, target: string): TarEntrySpec => ({ name, type: 'link', target });
const symlink = (name: string, target: string): TarEntrySpec => ({ name, type: 'symlink', target });
const whiteout = (name: string): TarEntrySpec => ({ name });

const refused = (t: Test, layers: Layer[], message: RegExp, code = 'CORRUPT') =>
  t.rejects(flattenLayers(layers), { code, message });

/** The content of the tree in a comparable form. */
const picture = (flat: Flattened) =>
  Object.fromEntries(
    flat.paths().map((path) => {
      const { kind, mode, uid, mtimeNs, links } = flat.at(path)!;
      return [
        path,
        { kind, mode, uid, mtimeNs: String(mtimeNs), links, text: kind === 'file' ? flat.text(path) : '' },
      ];
    }),
  );

t.test('a whiteout removes a file of a lower layer', async (t) => {
  const flat = await flattenLayers([[dir('d'), file('d/a'), file('d/b')], [whiteout('d/.wh.a')]]);
  t.same(flat.paths(), ['d/', 'd/b']);
});

t.test('a whiteout removes a directory with everything in it', async (t) => {
  const flat = await flattenLayers([[dir('d'), file('d/x/y/z'), file('e')], [whiteout('.wh.d')]]);
  t.same(flat.paths(), ['e']);
});

t.test('a whiteout of a missing file has no effect', async (t) => {
  const flat = await flattenLayers([[file('a')], [whiteout('.wh.b'), whiteout('no/dir/.wh.c')]]);
  t.same(flat.paths(), ['a']);
});

t.test('a whiteout does not create the directories of its path', async (t) => {
  const flat = await flattenLayers([[whiteout('x/y/.wh.z')]]);
  t.same(flat.paths(), []);
});

t.test('a whiteout does not affect its own layer’s entries, before or after it', async (t) => {
  for (const layer of [
    [whiteout('.wh.d'), dir('d', { mode: 0o700 }), file('d/new')],
    [dir('d', { mode: 0o700 }), file('d/new'), whiteout('.wh.d')],
    [file('d/new'), whiteout('.wh.d'), dir('d', { mode: 0o700 })],
  ]) {
    const flat = await flattenLayers([[dir('d', { uid: 5 }), file('d/old')], layer]);
    t.same(flat.paths(), ['d/', 'd/new']);
    t.match(flat.at('d'), { mode: 0o700, uid: 0 });
  }
});

t.test('a whiteout in the layer that adds the file affects only lower layers', async (t) => {
  const flat = await flattenLayers([[file('a', 'old')], [file('a', 'new'), whiteout('.wh.a')]]);
  t.equal(flat.text('a'), 'new');
});

t.test('an opaque marker hides lower layers’ content, wherever it is in its layer', async (t) => {
  const lower = [dir('d', { uid: 7 }), file('d/old'), dir('d/sub', { uid: 8 }), file('d/sub/old')];
  const marker = whiteout('d/.wh..wh..opq');
  const upper = [dir('d', { mode: 0o711 }), file('d/new'), file('d/sub/new')];
  const pictures: unknown[] = [];
  for (let at = 0; at <= upper.length; at++) {
    const flat = await flattenLayers([lower, upper.toSpliced(at, 0, marker)]);
    t.same(flat.paths(), ['d/', 'd/new', 'd/sub/', 'd/sub/new'], `marker at ${at}`);
    t.match(flat.at('d'), { mode: 0o711, uid: 0 });
    t.match(flat.at('d/sub'), { mode: 0o755, uid: 0 }, 'the lower directory of that name is hidden too');
    pictures.push(picture(flat));
  }
  for (const one of pictures) t.same(one, pictures[0]);
});

t.test('an opaque marker at the root hides everything below', async (t) => {
  const flat = await flattenLayers([
    [file('a'), file('b/c')],
    [file('n'), whiteout('.wh..wh..opq')],
  ]);
  t.same(flat.paths(), ['n']);
});

t.test('an opaque marker hides nothing of higher layers', async (t) => {
  const flat = await flattenLayers([[file('d/a')], [whiteout('d/.wh..wh..opq'), file('d/b')], [file('d/c')]]);
  t.same(flat.paths(), ['d/', 'd/b', 'd/c']);
});

t.test('whiteouts of impossible names are refused', async (t) => {
  for (const name of ['.wh.', '.wh..', '.wh...', 'd/.wh..wh.plnk', '.wh..wh..opq2', '.wh..wh.']) {
    await refused(t, [[dir('d'), whiteout(name)]], /a whiteout of an impossible name/);
  }
  await refused(t, [[file('d/.wh.x/y')]], /a path through a whiteout/);
});

t.test('a file replaces a directory, and a directory a file', async (t) => {
  const flat = await flattenLayers([
    [file('a/b/c'), file('x', 'was a file')],
    [file('a', 'now a file'), file('x/y', 'in a directory')].toSpliced(1, 0, dir('x')),
  ]);
  t.same(flat.paths(), ['a', 'x/', 'x/y']);
  t.equal(flat.text('a'), 'now a file');
});

t.test('a symlink replaces a directory, and a directory a symlink to one', async (t) => {
  const flat = await flattenLayers([
    [file('a/b'), dir('target'), symlink('s', 'target')],
    [symlink('a', 'target'), dir('s'), file('s/in')],
  ]);
  t.equal(flat.at('a')?.kind, 'symlink');
  t.same(flat.paths(), ['a', 's/', 's/in', 'target/']);
});

t.test('a directory over a directory merges children and takes the new metadata', async (t) => {
  const flat = await flattenLayers([
    [dir('d', { mode: 0o700, uid: 1, xattrs: { 'user.old': '1' }, mtime: 1 }), file('d/a')],
    [dir('d', { mode: 0o751, uid: 2, xattrs: { 'user.new': '2' }, mtime: 2 }), file('d/b')],
  ]);
  t.same(flat.paths(), ['d/', 'd/a', 'd/b']);
  t.match(flat.at('d'), { mode: 0o751, uid: 2, mtimeNs: 2_000_000_000n });
  t.same([...flat.at('d')!.xattrs.keys()], ['user.new']);
});

t.test('implied parents belong to root, with mode 0755 and time 0', async (t) => {
  const flat = await flattenLayers([[file('a/b/c')]]);
  for (const path of ['a', 'a/b']) {
    t.match(flat.at(path), { kind: 'directory', mode: 0o755, uid: 0, gid: 0, mtimeNs: 0n, links: 1 });
  }
});

t.test('a later entry for an implied parent sets its metadata', async (t) => {
  const flat = await flattenLayers([[file('a/b'), dir('a', { mode: 0o1777, uid: 9, mtime: 3 })]]);
  t.match(flat.at('a'), { mode: 0o1777, uid: 9, mtimeNs: 3_000_000_000n });
});

t.test('a parent that is only implied keeps the lower layer’s metadata', async (t) => {
  const flat = await flattenLayers([[dir('a', { mode: 0o700, uid: 9, mtime: 3 })], [file('a/b')]]);
  t.match(flat.at('a'), { mode: 0o700, uid: 9, mtimeNs: 3_000_000_000n });
});

t.test('the root’s own entry sets its metadata', async (t) => {
  for (const name of ['./', '/', '.']) {
    const flat = await flattenLayers([
      [{ name, type: 'directory', mode: 0o700, uid: 3, xattrs: { 'user.r': '1' } }],
    ]);
    t.match(flat.image.root, { kind: 'directory', mode: 0o700, uid: 3 });
    t.equal(flat.image.root.xattrs.size, 1);
  }
  const bare = await flattenLayers([[file('a')]]);
  t.match(bare.image.root, { mode: 0o755, uid: 0, mtimeNs: 0n });
  await refused(t, [[{ name: './', type: 'symlink', target: 'x' }]], /the root as a symlink/);
});

t.test('of two entries with one name, the last wins', async (t) => {
  const flat = await flattenLayers([
    [file('a', 'first'), file('a', 'second'), dir('d', { mode: 0o700 }), dir('d', { mode: 0o711 })],
  ]);
  t.equal(flat.text('a'), 'second');
  t.equal(flat.at('a')?.links, 1);
  t.equal(flat.at('d')?.mode, 0o711);
});

t.test('hard links share one inode, within a layer and across layers', async (t) => {
  const flat = await flattenLayers([
    [file('a', 'data'), link('b', 'a')],
    [link('d/c', '/b'), link('e', './d/../a')],
  ]);
  for (const path of ['b', 'd/c', 'e']) t.equal(flat.at(path), flat.at('a'));
  t.equal(flat.at('a')?.links, 4);
  t.equal(flat.text('d/c'), 'data');
});

t.test('replacing one name of a file keeps its other names', async (t) => {
  const flat = await flattenLayers([[file('a', 'data'), link('b', 'a')], [file('a', 'new')]]);
  t.equal(flat.text('b'), 'data');
  t.equal(flat.at('b')?.links, 1);
  t.equal(flat.text('a'), 'new');
});

t.test('a link may replace another name of the same file', async (t) => {
  const flat = await flattenLayers([[file('a'), link('b', 'a'), link('b', 'a')], [link('b', 'a')]]);
  t.equal(flat.at('a')?.links, 2);
  t.equal(flat.at('a'), flat.at('b'));
});

t.test('a link’s target that is whited out later stays under the name of the link', async (t) => {
  const flat = await flattenLayers([[file('a', 'data')], [link('b', 'a'), whiteout('.wh.a')]]);
  t.same(flat.paths(), ['b']);
  t.match(flat.at('b'), { links: 1 });
  t.equal(flat.text('b'), 'data');
});

t.test('a hard link to a symlink is another name of the symlink', async (t) => {
  const flat = await flattenLayers([[symlink('s', 'nowhere'), link('t', 's')]]);
  t.equal(flat.at('t'), flat.at('s'));
  t.match(flat.at('t'), { kind: 'symlink', links: 2, target: 'nowhere' });
});

t.test('a link’s own header does not change the file', async (t) => {
  const flat = await flattenLayers([
    [
      { name: 'a', body: 'x', mode: 0o600, uid: 5 },
      { ...link('b', 'a'), mode: 0o777, uid: 9 },
    ],
  ]);
  t.match(flat.at('b'), { mode: 0o600, uid: 5 });
});

t.test(
  'hard links to a missing file, a directory or themselves are refused, with path and layer',
  async (t) => {
    const where = (text: string) => new RegExp(`^layer 2 of 2 \\(sha256:[0-9a-f]{64}\\): path "l": ${text}`);
    const base = [file('a/b'), dir('d')];
    await refused(t, [base, [link('l', 'none')]], where('a hard link to "none", which does not exist'));
    await refused(
      t,
      [base, [link('l', 'no/dir/x')]],
      where('a hard link to "no/dir/x", which does not exist'),
    );
    await refused(t, [base, [link('l', 'd')]], where('a hard link to "d", which is a directory'));
    await refused(t, [base, [link('l', '/')]], where('a hard link to "/", which is a directory'));
    await refused(t, [[...base, file('l')], [link('l', 'l')]], where('a hard link to "l", which is itself'));
    await refused(t, [base, [link('l', '../../a/b')]], where('a path that leaves the root'));
    await refused(
      t,
      [[file('l/in')], [link('l', 'l/in')]],
      where('a hard link to "l/in", which the link replaces'),
    );
  },
);

t.test('names that leave the root are refused', async (t) => {
  for (const name of ['../x', 'a/../../x', '/../x', 'a/b/../../../x', '..']) {
    await refused(
      t,
      [[file(name)]],
      /^layer 1 of 1 \(sha256:[0-9a-f]{64}\): path ".*": a path that leaves the root/,
    );
  }
});

t.test('absolute paths, dots and double slashes are normalised', async (t) => {
  const flat = await flattenLayers([[file('/abs/x'), file('./a//b/./c/../d'), dir('.//e//')]]);
  t.same(flat.paths(), ['a/', 'a/b/', 'a/b/d', 'abs/', 'abs/x', 'e/']);
});

t.test('an entry below a symlink is put where the symlink points, inside the root', async (t) => {
  const flat = await flattenLayers([
    [dir('usr/lib'), symlink('lib', 'usr/lib'), symlink('abs', '/usr/lib'), symlink('up', '../../../usr')],
    [file('lib/a'), file('abs/b'), file('up/lib/c'), link('lib/d', 'up/lib/c')],
  ]);
  t.same(
    flat.paths().filter((path) => path.startsWith('usr/lib/')),
    ['usr/lib/', 'usr/lib/a', 'usr/lib/b', 'usr/lib/c', 'usr/lib/d'],
  );
  t.equal(flat.at('usr/lib/c'), flat.at('usr/lib/d'));
  t.equal(flat.at('lib')?.kind, 'symlink');
});

t.test('an entry below a dangling symlink creates the missing directories', async (t) => {
  const flat = await flattenLayers([[symlink('run', 'var/run'), file('run/pid')]]);
  t.same(flat.paths(), ['run', 'var/', 'var/run/', 'var/run/pid']);
});

t.test('a whiteout through a symlink applies to the directory that the symlink points to', async (t) => {
  const flat = await flattenLayers([[file('usr/lib/a'), symlink('lib', 'usr/lib')], [whiteout('lib/.wh.a')]]);
  t.same(flat.paths(), ['lib', 'usr/', 'usr/lib/']);
});

t.test('an entry that was put through a symlink belongs to its layer', async (t) => {
  const flat = await flattenLayers([
    [file('usr/lib/old'), symlink('lib', 'usr/lib')],
    [file('lib/new'), whiteout('usr/.wh..wh..opq')],
  ]);
  t.same(flat.paths(), ['lib', 'usr/', 'usr/lib/', 'usr/lib/new']);
});

t.test('loops of symlinks, and paths through files, are refused', async (t) => {
  await refused(
    t,
    [[symlink('a', 'b'), symlink('b', 'a'), file('a/x')]],
    /path "a\/x": a path through a loop/,
  );
  await refused(t, [[symlink('a', 'a/a'), file('a/x')]], /loop/);
  await refused(t, [[file('f'), file('f/x')]], /a path through "f", which is a file/);
  await refused(t, [[file('f'), symlink('s', 'f/..'), file('s/x')]], /a path through "f", which is a file/);
  await refused(t, [[file('f'), link('l', 'f/x')]], /a hard link to "f\/x", which does not exist/);
  const flat = await flattenLayers([[file('f')], [whiteout('f/.wh.x'), whiteout('f/.wh..wh..opq')]]);
  t.same(flat.paths(), ['f'], 'a whiteout below a file has no effect');
});

t.test('names, paths and targets longer than Linux allows are refused', async (t) => {
  const name = 'n'.repeat(255);
  const flat = await flattenLayers([[file(name), symlink('s', 't'.repeat(4095))]]);
  t.ok(flat.at(name));
  t.equal(flat.at('s')?.target.length, 4095);
  await refused(t, [[file(`${name}n`)]], /a name of 256 bytes/);
  await refused(t, [[file(`${'d/'.repeat(2047)}xx`)]], /a path of 4096 bytes/);
  await refused(t, [[symlink('s', 't'.repeat(4096))]], /a symlink target of 4096 bytes/);
  await refused(t, [[symlink('s', '')]], /a symlink to an impossible path/);
  const deep = `/${'d/'.repeat(1200)}`;
  await refused(t, [[dir(deep), symlink('s', deep), file(`s/${'y/'.repeat(1000)}x`)]], /lead to a path of/);
});

t.test('all kinds of metadata are kept, except sockets, which tar cannot hold', async (t) => {
  const flat = await flattenLayers([
    [
      { name: 'f', body: 'x', mode: 0o6755, uid: 4_294_967_294, gid: 3_000_000_000, mtime: -1_500_000_000n },
      { name: 's', type: 'symlink', target: 'f', mode: 0o600 },
      { name: 'c', type: 'char', major: 1, minor: 3, mode: 0o666 },
      { name: 'b', type: 'block', major: 4095, minor: 1_048_575 },
      { name: 'p', type: 'fifo' },
    ],
  ]);
  t.match(flat.at('f'), {
    mode: 0o6755,
    uid: 4_294_967_294,
    gid: 3_000_000_000,
    mtimeNs: -1_500_000_000n,
    sizeBytes: 1,
  });
  t.equal(flat.at('s')?.mode, 0o777, 'Linux has no other mode for a symlink');
  t.match(flat.at('c'), { kind: 'char', rdevMajor: 1, rdevMinor: 3, mode: 0o666 });
  t.match(flat.at('b'), { kind: 'block', rdevMajor: 4095, rdevMinor: 1_048_575 });
  t.equal(flat.at('p')?.kind, 'fifo');
});

t.test('xattrs in namespaces of Linux are kept, others are dropped', async (t) => {
  const xattrs = {
    'user.u': '1',
    'trusted.t': '2',
    'security.capability': Buffer.from([0, 255]),
    // Version 2 without entries.
    'system.posix_acl_access': Buffer.from([2, 0, 0, 0]),
    'com.apple.quarantine': 'x',
    'system.other': 'x',
  };
  const flat = await flattenLayers([[{ name: 'f', xattrs }]]);
  t.same(
    [...flat.at('f')!.xattrs.keys()],
    ['user.u', 'trusted.t', 'security.capability', 'system.posix_acl_access'],
  );
});

t.test('names that are not UTF-8 keep their bytes', async (t) => {
  const flat = await flattenLayers([[{ name: Buffer.from('caf\xe9/\xff', 'latin1'), body: 'x' }]]);
  t.same([...flat.image.root.children.keys()], ['caf\xe9']);
  t.same([...flat.image.root.children.get('caf\xe9')!.children.keys()], ['\xff']);
});

t.test('a name from Object’s prototype is treated like any other name', async (t) => {
  const flat = await flattenLayers([[file('__proto__/constructor', 'x')], [whiteout('.wh.toString')]]);
  t.equal(flat.text('__proto__/constructor'), 'x');
});
