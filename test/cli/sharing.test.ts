/** The commands that show what images share and why: diff, inspect --paths, images --tree. */
import { randomBytes } from 'node:crypto';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import type { ChunkPaths } from '../../src/image/chunk-paths.ts';
import type { ImageDiff } from '../../src/image/image-diff.ts';
import type { SharingImage } from '../../src/store/share-tree.ts';
import { lazydisk, lazydiskJson, workplace } from '../support/daemon.ts';
import { chunkFileIn } from '../support/dir-store.ts';
import { makeOciLayout } from '../support/oci.ts';

t.test('two images and a store are told of, with a key and without', async (t) => {
  const place = await workplace(t);
  const base = Array.from({ length: 60 }, (_, n) => ({ name: `etc/file-${n}`, body: randomBytes(10_000) }));
  const top = [{ name: 'app/main', body: randomBytes(900_000) }];
  await makeOciLayout(join(place.dir, '1'), { layers: [base] });
  await makeOciLayout(join(place.dir, '2'), { layers: [base, top] });
  const env = { LAZYDISK_STORE: place.store };
  const withKey = { ...env, LAZYDISK_KEY: place.key };
  for (const tag of ['1', '2'])
    await lazydiskJson(
      ['build', `oci:${place.dir}/${tag}`, '--name', `app:${tag}`, '--size', '64M'],
      withKey,
    );

  const found = await lazydiskJson<ImageDiff>(['diff', 'app:1', 'app:2'], withKey);
  t.match(found.b.content!.paths, [{ path: '/app/main', chunks: 2 }]);
  t.ok(found.b.content!.metadata.some(({ use }) => use === 'inodes'));
  const text = await lazydisk(['diff', 'app:1', 'app:2'], withKey);
  t.match(text.stdout, /^shared +\d.* chunks: [\d.]+ % of app:1, [\d.]+ % of app:2$/m);
  t.match(text.stdout, /^Only app:2:\n *BYTES +CHUNKS +PATH\n(.*\n)* *8\d\d KiB +2 +\/app\/main$/m);
  const blind = await lazydisk(['diff', 'app:1', 'app:2'], env);
  t.match(blind, { code: 0, stdout: /give --key to see it\.$/m });
  t.notMatch(blind.stdout, /main/);

  const all = await lazydiskJson<ChunkPaths>(['inspect', 'app:2', '--paths', '--all'], withKey);
  t.equal(all.paths.length, 60 + 5, 'the files, etc, app, lost+found, and the root');
  const main = await lazydisk(['inspect', 'app:2', '--paths', 'main'], withKey);
  t.match(
    main.stdout,
    /^PATH .*\n\/app\/main +\d+ +[0-9a-f]{64} +\S+ KiB +data\n +\d+ +[0-9a-f]{64} .*data\n$/,
  );
  const bounded = await lazydisk(['inspect', 'app:2', '--paths'], withKey);
  t.match(bounded.stdout, /^\(metadata\) +0 +[0-9a-f]{64} .*superblock/m);

  const tree = await lazydiskJson<SharingImage[]>(['images', '--tree'], env);
  t.match(tree, [
    { names: ['app:1'], depth: 0 },
    { names: ['app:2'], depth: 1, parent: 'app:1', shared: found.shared, added: found.b.unique },
  ]);
  t.match(
    (await lazydisk(['images', '--tree'], env)).stdout,
    /^app:1 .*\n└─ app:2 .*\n2 images, .* stored\n$/m,
  );

  const refusals: [number, readonly string[], NodeJS.ProcessEnv][] = [
    [3, ['diff', 'app:1', 'none'], env],
    [2, ['diff', 'app:1', 'app:2'], {}],
    [5, ['diff', 'app:1', 'app:2', '--key', join(place.dir, 'other')], env],
    [2, ['inspect', 'app:1', '--paths'], env],
    [2, ['inspect', 'app:1', '--all'], withKey],
    [2, ['images', '--tree'], {}],
    [2, ['images', '--tree', '--history'], env],
  ];
  t.equal((await lazydisk(['key', 'new', join(place.dir, 'other')])).code, 0);
  for (const [code, words, variables] of refusals) {
    const refused = await lazydisk(words, variables);
    t.match(refused, { code, stdout: '', stderr: /^lazydisk: [^\n]+\n$/ }, words.join(' '));
  }
  const { id } = all.metadata[0]!;
  rmSync(chunkFileIn(place.storeDir, id));
  const gone = await lazydisk(['diff', 'app:1', 'app:2'], withKey);
  t.match(gone, { code: 3, stderr: new RegExp(`^lazydisk: chunk 0 \\(${id}\\) of app:2 is not in file:`) });
});
