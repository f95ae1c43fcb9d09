/**
 * What may import what. Rooms stand in one order and see only what stands before them, and no file is on a circle of
 * imports. Imports of types count: a type lives in the lowest room that needs it.
 */
import { globSync, readFileSync } from 'node:fs';
import { dirname, join, normalize, resolve } from 'node:path';
import t from 'tap';

const SRC = resolve(import.meta.dirname, '..', 'src');

/** Lowest first. A name is a folder of src or a file in it. The folders of one line do not know each other. */
const ORDER = [
  ['errors.ts', 'version.ts', 'loop-work.ts'],
  ['units.ts', 'own-files.ts', 'shape.ts', 'async'],
  ['directory-lock.ts', 'format', 'http-client'],
  ['keys'],
  ['store'],
  ['chunk', 'image'],
  ['drive'],
  ['export', 'boot'],
  ['daemon'],
  ['cli'],
  ['main.ts', 'demo'],
];

/** Files of src, each with what it imports of src, as paths under src. */
const IMPORTS = new Map(
  globSync('**/*.ts', { cwd: SRC }).map((file) => {
    const text = readFileSync(join(SRC, file), 'utf8');
    const specifiers = text.matchAll(/(?:\bfrom|\bimport)\s*\(?\s*'(\.[^']+)'/g);
    const paths = [...specifiers].map(([, path]) => normalize(join(dirname(file), path!)));
    return [file, paths.filter((path) => !path.startsWith('..'))];
  }),
);

const roomOf = (file: string) => file.split('/')[0]!;
const levelOf = (room: string) => ORDER.findIndex((rooms) => rooms.includes(room));

/** The files on a circle that `file` is on, in order; undefined if it is on none. */
function circleFrom(file: string): string[] | undefined {
  const before = new Map<string, string>();
  const queue = [file];
  for (const from of queue)
    for (const to of IMPORTS.get(from) ?? []) {
      if (before.has(to)) continue;
      before.set(to, from);
      queue.push(to);
    }
  if (!before.has(file)) return undefined;
  const circle = [file];
  for (let at = before.get(file)!; at !== file; at = before.get(at)!) circle.unshift(at);
  return [file, ...circle];
}

t.test('every file is in a room that has its place in the order', async (t) => {
  t.ok(IMPORTS.size > 200, 'the files are found');
  t.same([...new Set([...IMPORTS.keys()].map(roomOf))].filter((room) => levelOf(room) === -1).sort(), []);
  const rooms = new Set([...IMPORTS.keys()].map(roomOf));
  t.same(
    ORDER.flat().filter((room) => !rooms.has(room)),
    [],
    'and the order names no room that is gone',
  );
});

t.test('every import is of a file that is there', async (t) => {
  const missing = [...IMPORTS].flatMap(([file, paths]) =>
    paths.filter((path) => !IMPORTS.has(path)).map((path) => `${file} → ${path}`),
  );
  t.same(missing, []);
});

t.test('a room imports only from rooms below it', async (t) => {
  const upward = [...IMPORTS].flatMap(([file, paths]) =>
    paths
      .filter((path) => roomOf(path) !== roomOf(file) && levelOf(roomOf(path)) >= levelOf(roomOf(file)))
      .map((path) => `${file} → ${path}`),
  );
  t.same(upward, []);
});

t.test('no file imports itself, directly or through others', async (t) => {
  const circles = [...IMPORTS.keys()].flatMap((file) => circleFrom(file)?.join(' → ') ?? []);
  t.same(circles, []);
});
