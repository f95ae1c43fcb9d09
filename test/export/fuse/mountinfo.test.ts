/** /proc/self/mountinfo: any path is read back unchanged, and malformed lines are skipped. */
import assert from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import { parseMountinfo } from '../../../src/export/fuse/mountinfo.ts';

/** Escapes as the kernel's mangle() does. */
function escapePath(path: string): string {
  return Buffer.from(path)
    .toString('latin1')
    .replace(/[ \t\n\\]/g, (char) => `\\${char.charCodeAt(0).toString(8).padStart(3, '0')}`);
}

t.test('mount points with any characters are found', async (t) => {
  const anyName = fc.string({ unit: 'grapheme', minLength: 1 }).filter((name) => !/[\0/\r]/.test(name));
  fc.assert(
    fc.property(
      anyName,
      fc.array(fc.constantFrom('shared:1', 'master:2'), { maxLength: 2 }),
      (name, optional) => {
        const options = ['rw', ...optional, '-', 'fuse.lazydisk', 'lazydisk', 'ro'].join(' ');
        const line = `42 27 0:39 / ${escapePath(`/run/${name}`)} ${options}`;
        const [mount, ...rest] = parseMountinfo(`36 35 98:0 / /mnt rw - ext4 /dev/root rw\n${line}\n`).slice(
          1,
        );
        assert.deepEqual(rest, []);
        assert.equal(mount?.mountPoint, `/run/${name}`);
        assert.equal(mount.type, 'fuse.lazydisk');
        assert.equal(mount.minor, 39);
      },
    ),
  );
  t.pass('holds');
});

t.test('random input yields no mount and no exception', async (t) => {
  fc.assert(
    fc.property(
      fc.array(fc.constantFrom(' ', '-', '0:1', '/x', '\n', 'a', '\\04'), { maxLength: 40 }),
      (parts) => {
        for (const mount of parseMountinfo(parts.join(''))) assert.ok(Number.isInteger(mount.minor));
      },
    ),
  );
  t.same(parseMountinfo('42 27 0:39 / /x rw'), []);
  t.same(parseMountinfo(''), []);
});
