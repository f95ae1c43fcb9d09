/** The merge compared with a simple model: layers as maps of paths, laid over each other. */
import assert from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import { type Flattened, flattenLayers } from '../support/image.ts';
import type { TarEntrySpec } from '../support/tar.ts';

/** One layer: what each path is, what is hidden, which directories are opaque. */
interface ModelLayer {
  files: Map<string, string>;
  directories: Map<string, number>;
  whiteouts: Set<string>;
  opaque: Set<string>;
}

const parentsOf = (path: string) => {
  const parts = path.split('/').slice(0, -1);
  return parts.map((_, at) => parts.slice(0, at + 1).join('/'));
};

const name = fc.constantFrom('a', 'b', 'c');
const path = fc.array(name, { minLength: 1, maxLength: 4 }).map((parts) => parts.join('/'));
const operation = fc.record({ path, what: fc.constantFrom('file', 'directory', 'whiteout', 'opaque') });

/** A layer with one statement for each path, and nothing below a file. */
const layer = fc.array(operation, { maxLength: 10 }).map((operations): ModelLayer => {
  const layer: ModelLayer = {
    files: new Map(),
    directories: new Map(),
    whiteouts: new Set(),
    opaque: new Set(),
  };
  let serial = 1;
  for (const { path, what } of operations) {
    const above = parentsOf(path);
    const below = [...layer.files.keys(), ...layer.directories.keys(), ...layer.opaque];
    if (above.some((one) => layer.files.has(one))) continue;
    if (what === 'file') {
      if (layer.files.has(path) || layer.directories.has(path) || layer.opaque.has(path)) continue;
      if (below.some((one) => one.startsWith(`${path}/`))) continue;
      if ([...layer.whiteouts].some((one) => one.startsWith(`${path}/`))) continue;
      layer.files.set(path, `${path} ${serial++}`);
    } else if (what === 'directory') {
      if (!layer.files.has(path)) layer.directories.set(path, 0o700 + (serial++ % 64));
    } else if (what === 'opaque') {
      if (!layer.files.has(path)) layer.opaque.add(path);
    } else layer.whiteouts.add(path);
  }
  // Each layer has entries for all its directories, as every tool that creates layers writes them.
  for (const path of [...layer.files.keys(), ...layer.directories.keys(), ...layer.opaque]) {
    for (const parent of [...parentsOf(path), ...(layer.opaque.has(path) ? [path] : [])]) {
      if (!layer.directories.has(parent)) layer.directories.set(parent, 0o700);
    }
  }
  return layer;
});

function model(layers: ModelLayer[]): Map<string, string> {
  let tree = new Map<string, string>();
  for (const { files, directories, whiteouts, opaque } of layers) {
    const hidden = (path: string) => {
      const ways = [...parentsOf(path), path];
      // A whiteout hides its path and all below; an opaque marker all below; a file of this layer likewise.
      return (
        ways.some((way) => whiteouts.has(way) || files.has(way)) ||
        parentsOf(path).some((way) => opaque.has(way))
      );
    };
    const next = new Map([...tree].filter(([path]) => !hidden(path)));
    for (const [path, mode] of directories) next.set(path, `directory ${mode}`);
    for (const [path, text] of files) next.set(path, `file ${text}`);
    tree = next;
  }
  return tree;
}

function entriesOf(layer: ModelLayer): TarEntrySpec[] {
  const marker = (path: string) => {
    const at = path.lastIndexOf('/') + 1;
    return { name: `${path.slice(0, at)}.wh.${path.slice(at)}` };
  };
  return [
    ...[...layer.directories].map(([path, mode]) => ({ name: `${path}/`, mode })),
    ...[...layer.files].map(([path, body]) => ({ name: path, body })),
    ...[...layer.whiteouts].map(marker),
    // A repeated marker has no further effect, whatever comes between.
    ...[...layer.opaque, ...layer.opaque].map((path) => ({ name: `${path}/.wh..wh..opq` })),
  ];
}

function picture(flat: Flattened): Map<string, string> {
  return new Map(
    flat.paths().map((path) => {
      const inode = flat.at(path)!;
      const plain = path.replace(/\/$/, '');
      return [plain, inode.kind === 'file' ? `file ${flat.text(path)}` : `directory ${inode.mode}`];
    }),
  );
}

/** Any order in which a directory's entry comes before its content. */
function shuffled(entries: TarEntrySpec[], keys: number[]): TarEntrySpec[] {
  const keyed = entries.map((entry, at) => ({ entry, key: keys[at % keys.length]! }));
  const isDirectory = (entry: TarEntrySpec) => String(entry.name).endsWith('/');
  const isMarker = (entry: TarEntrySpec) => /(^|\/)\.wh\./.test(String(entry.name));
  const depth = (entry: TarEntrySpec) => String(entry.name).split('/').length;
  // Markers go anywhere; entries stay sorted by depth, directories first.
  const plain = keyed
    .filter(({ entry }) => !isMarker(entry))
    .sort(
      (a, b) =>
        Number(isDirectory(b.entry)) - Number(isDirectory(a.entry)) ||
        depth(a.entry) - depth(b.entry) ||
        a.key - b.key,
    )
    .map(({ entry }) => entry);
  for (const { entry, key } of keyed.filter(({ entry }) => isMarker(entry))) {
    plain.splice(key % (plain.length + 1), 0, entry);
  }
  return plain;
}

t.test('layers merge as in the model, in any order of entries within a layer', async (t) => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(layer, { minLength: 1, maxLength: 4 }),
      fc.array(fc.nat(1000), { minLength: 5, maxLength: 20 }),
      async (layers, keys) => {
        const flat = await flattenLayers(layers.map((one) => shuffled(entriesOf(one), keys)));
        assert.deepEqual(picture(flat), new Map([...model(layers)].sort()));
      },
    ),
    { numRuns: 1000 },
  );
  t.pass('for all layers');
});
