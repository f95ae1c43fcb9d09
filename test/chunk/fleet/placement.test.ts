import { createHash } from 'node:crypto';
import fc from 'fast-check';
import t from 'tap';
import { parseFleetUrl, parseNodeLine } from '../../../src/chunk/fleet/node-list.ts';
import { Placement, type PlacementNode } from '../../../src/chunk/fleet/placement.ts';
import type { ChunkId } from '../../../src/format/chunk-id.ts';

const id = (n: number) => createHash('sha256').update(`id ${n}`).digest('hex') as ChunkId;
const ids = Array.from({ length: 20_000 }, (_, n) => id(n));
const nodes = (count: number): PlacementNode[] =>
  Array.from({ length: count }, (_, n) => ({ name: `node-${n}`, weight: 1 }));

t.test('each node gets its weight’s share of first places', async (t) => {
  const list = [1, 1, 2, 4].map((weight, n) => ({ name: `n${n}`, weight }));
  const placement = new Placement(list);
  const counts = new Map<string, number>();
  for (const one of ids) {
    const [first] = placement.place(one, 1);
    counts.set(first!.name, (counts.get(first!.name) ?? 0) + 1);
  }
  for (const { name, weight } of list) {
    const share = counts.get(name)! / ids.length;
    t.ok(Math.abs(share - weight / 8) < 0.02, `${name} has ${share.toFixed(3)}`);
  }
});

t.test('a node that is added or removed moves only its own share', async (t) => {
  const before = new Placement(nodes(8));
  const after = new Placement(nodes(9));
  let moved = 0;
  for (const one of ids) {
    const old = new Set(before.place(one, 5).map((node) => node.name));
    const now = after.place(one, 5).map((node) => node.name);
    const fresh = now.filter((name) => !old.has(name));
    if (fresh.some((name) => name !== 'node-8')) return t.fail('a shard moved between nodes that stayed');
    moved += fresh.length;
  }
  const share = moved / (ids.length * 5);
  t.ok(Math.abs(share - 1 / 9) < 0.01, `${share.toFixed(4)} of the shards moved`);
});

t.test('property: nodes are distinct, independent of list order, and spread over zones', async (t) => {
  const list = fc.uniqueArray(
    fc.record({
      name: fc.string({ minLength: 1, maxLength: 12 }),
      weight: fc.integer({ min: 1, max: 9 }),
      zone: fc.constantFrom('a', 'b', 'c'),
    }),
    { selector: (node) => node.name, minLength: 1, maxLength: 14 },
  );
  fc.assert(
    fc.property(list, fc.nat(1000), fc.integer({ min: 1, max: 8 }), (list, n, want) => {
      const chosen = new Placement(list).place(id(n), want);
      const again = new Placement([...list].reverse()).place(id(n), want);
      const names = chosen.map((node) => node.name);
      if (JSON.stringify(names) !== JSON.stringify(again.map((node) => node.name))) return false;
      if (new Set(names).size !== Math.min(want, list.length)) return false;
      // No zone has two more than another that still had a node left.
      const held = (zone: string) => chosen.filter((node) => node.zone === zone).length;
      const has = (zone: string) => list.filter((node) => node.zone === zone).length;
      return ['a', 'b', 'c'].every((x) =>
        ['a', 'b', 'c'].every((y) => held(x) <= held(y) + 1 || held(y) === has(y)),
      );
    }),
  );
  t.pass();
});

t.test('fleet URLs and node lines are parsed, and invalid ones refused', async (t) => {
  const url = parseFleetUrl('memcached://a:1,b:2,[::1]:3?k=2&m=1');
  t.same(url.code, { k: 2, m: 1 });
  t.same(
    (await url.read()).map((node) => [node.host, node.port]),
    [
      ['a', 1],
      ['b', 2],
      ['::1', 3],
    ],
  );
  t.same(parseNodeLine('h1 name=x zone=z weight=2.5'), {
    name: 'x',
    host: 'h1',
    port: 11211,
    weight: 2.5,
    zone: 'z',
  });
  const wrong = [
    'http://a:1',
    'memcached://',
    'memcached://a:0',
    'memcached://a:1?k=0',
    'memcached://a:1?k=16&m=1',
    'memcached://a:1?q=1',
    'memcached://a:1,a:1x',
    'memcached://a b',
  ];
  for (const text of wrong) t.throws(() => parseFleetUrl(text), { code: 'USAGE' }, text);
  t.throws(() => parseFleetUrl('memcached://a:1,a:1'), { code: 'USAGE' }, 'the same node twice');
});
