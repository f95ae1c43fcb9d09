/** Digests cover every byte of a source, and each error names the blob. */

import { readdirSync, readFileSync, statSync, unlinkSync, writeFileSync } from 'node:fs';
import { truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import fc from 'fast-check';
import t from 'tap';
import { LazydiskError } from '../../../src/errors.ts';
import type { ImageSource } from '../../../src/image/source/image-source.ts';
import { openSource } from '../../../src/image/source/open-source.ts';
import { flattenAll } from '../../support/image.ts';
import {
  compress,
  makeDockerArchive,
  makeOciLayout,
  packLayout,
  packTar,
  putBlob,
  putIndex,
  putJson,
} from '../../support/oci.ts';
import { packEntry } from '../../support/tar.ts';

const tar = packTar([{ name: 'f', body: Buffer.alloc(1_000_000, 'f') }]);
const COMPRESSIONS = ['none', 'gzip', 'zstd'] as const;

async function readLayers(source: ImageSource): Promise<void> {
  try {
    for (const layer of source.layers) for await (const _ of layer.open());
  } finally {
    await source.close();
  }
}

const blobPath = (dir: string, digest: string) => join(dir, 'blobs/sha256', digest.slice(7));

for (const compression of COMPRESSIONS) {
  t.test(`a changed, truncated, extended or missing ${compression} layer is refused`, async (t) => {
    const dir = t.testdir();
    const { layerDigests } = await makeOciLayout(dir, { layers: [tar], compression });
    const path = blobPath(dir, layerDigests[0]!);
    const blob = readFileSync(path);
    const names = new RegExp(`blob ${layerDigests[0]}`);
    for (const at of [0, 100, blob.length >> 1, blob.length - 1]) {
      const changed = Buffer.from(blob);
      changed[at]! ^= 0x10;
      writeFileSync(path, changed);
      await t.rejects(
        readLayers(await openSource(`oci:${dir}`)),
        { code: 'CORRUPT', message: names },
        `byte ${at}`,
      );
    }
    writeFileSync(path, blob.subarray(0, -1));
    await t.rejects(readLayers(await openSource(`oci:${dir}`)), { code: 'CORRUPT', message: names });
    writeFileSync(path, Buffer.concat([blob, Buffer.alloc(1)]));
    await t.rejects(readLayers(await openSource(`oci:${dir}`)), { code: 'CORRUPT', message: names });
    unlinkSync(path);
    await t.rejects(readLayers(await openSource(`oci:${dir}`)), { code: 'NOT_FOUND', message: names });
  });

  t.test(`a ${compression} layer that matches its digest but not its diff_id is refused`, async (t) => {
    const dir = t.testdir();
    const { manifestDigest, diffIds } = await makeOciLayout(dir, { layers: [tar], compression });
    const manifest = JSON.parse(readFileSync(blobPath(dir, manifestDigest), 'utf8'));
    const other = packTar([{ name: 'other' }]);
    const layer = await putBlob(dir, compress(other, compression), manifest.layers[0].mediaType);
    await putIndex(dir, [await putJson(dir, { ...manifest, layers: [layer] }, manifest.mediaType)]);
    await t.rejects(readLayers(await openSource(`oci:${dir}`)), {
      code: 'CORRUPT',
      message: new RegExp(
        `blob ${layer.digest}: its unpacked content has digest sha256:[0-9a-f]+, expected ${diffIds[0]}`,
      ),
    });
  });
}

t.test('a layer that is truncated while it is read is refused', async (t) => {
  const dir = t.testdir();
  const { layerDigests } = await makeOciLayout(dir, {
    layers: [Buffer.alloc(4_000_000)],
    compression: 'none',
  });
  const source = await openSource(`oci:${dir}`);
  const read = async () => {
    let first = true;
    for await (const _ of source.layers[0]!.open()) {
      if (first) await truncate(blobPath(dir, layerDigests[0]!), 2_000_000);
      first = false;
    }
  };
  await t.rejects(read(), { code: 'CORRUPT', message: /is 2000000 bytes, expected 4000000/ });
  await source.close();
});

t.test('changed documents are refused before they are used', async (t) => {
  const dir = t.testdir();
  const { manifestDigest, configDigest } = await makeOciLayout(dir, { layers: [tar] });
  for (const digest of [manifestDigest, configDigest]) {
    const path = blobPath(dir, digest);
    const bytes = readFileSync(path);
    const changed = Buffer.from(bytes);
    changed[5]! ^= 1;
    writeFileSync(path, changed);
    await t.rejects(openSource(`oci:${dir}`), {
      code: 'CORRUPT',
      message: new RegExp(`blob ${digest} has digest`),
    });
    writeFileSync(path, Buffer.concat([bytes, Buffer.from(' ')]));
    await t.rejects(openSource(`oci:${dir}`), {
      code: 'CORRUPT',
      message: new RegExp(`blob ${digest} is \\d+ bytes`),
    });
    unlinkSync(path);
    await t.rejects(openSource(`oci:${dir}`), {
      code: 'NOT_FOUND',
      message: new RegExp(`blob ${digest} is missing`),
    });
    writeFileSync(path, bytes);
  }
});

t.test('malformed documents are refused', async (t) => {
  const dir = t.testdir();
  await makeOciLayout(dir, { layers: [tar] });
  const type = 'application/vnd.oci.image.manifest.v1+json';
  for (const document of [{}, [], null, { schemaVersion: 1 }, { schemaVersion: 2, config: {}, layers: [] }]) {
    await putIndex(dir, [await putJson(dir, document, type)]);
    await t.rejects(openSource(`oci:${dir}`), { code: 'CORRUPT', message: /manifest sha256:[0-9a-f]{64}: / });
  }
  await putIndex(dir, [await putBlob(dir, Buffer.from('{"schemaVersion"'), type)]);
  await t.rejects(openSource(`oci:${dir}`), { code: 'CORRUPT', message: /is not JSON/ });
  await writeFile(join(dir, 'index.json'), '{"schemaVersion":2,"manifests":{}}');
  await t.rejects(openSource(`oci:${dir}`), { code: 'CORRUPT', message: /index\.json: manifests/ });
  await writeFile(join(dir, 'index.json'), Buffer.alloc(5 * 2 ** 20, ' '));
  await t.rejects(openSource(`oci:${dir}`), {
    code: 'CORRUPT',
    message: /index\.json is 5242880 bytes, at most/,
  });
});

t.test('diff_ids that do not match the layers are refused', async (t) => {
  const dir = t.testdir();
  const { manifestDigest } = await makeOciLayout(dir, { layers: [tar] });
  const manifest = JSON.parse(readFileSync(blobPath(dir, manifestDigest), 'utf8'));
  const withDiffIds = async (diffIds: unknown, layers = manifest.layers) => {
    const config = await putJson(
      dir,
      { rootfs: { type: 'layers', diff_ids: diffIds } },
      manifest.config.mediaType,
    );
    await putIndex(dir, [await putJson(dir, { ...manifest, config, layers }, manifest.mediaType)]);
  };
  await withDiffIds([]);
  await t.rejects(openSource(`oci:${dir}`), { code: 'CORRUPT', message: /0 diff_ids for 1 layers/ });
  await withDiffIds(['sha256:../x']);
  await t.rejects(openSource(`oci:${dir}`), { code: 'CORRUPT', message: /diff_ids: .* is not a sha256/ });
  await withDiffIds([], Array(513).fill(manifest.layers[0]));
  await t.rejects(openSource(`oci:${dir}`), {
    code: 'UNSUPPORTED',
    message: /an image of 513 layers; the maximum is 512/,
  });
});

t.test('config and layers of old docker archives are verified too', async (t) => {
  const dir = t.testdir();
  const file = join(dir, 'd.tar');
  const { configDigest, diffIds } = await makeDockerArchive(file, { layers: [tar] });
  const bytes = readFileSync(file);
  const flip = (needle: string, offset: number) => {
    const changed = Buffer.from(bytes);
    changed[bytes.indexOf(needle) + offset]! ^= 1;
    writeFileSync(file, changed);
  };
  flip('"architecture"', 16);
  await t.rejects(openSource(`docker-archive:${file}`), {
    code: 'CORRUPT',
    message: new RegExp(`blob ${configDigest} .* has digest`),
  });
  flip('ffffffff', 1000);
  await t.rejects(readLayers(await openSource(`docker-archive:${file}`)), {
    code: 'CORRUPT',
    message: new RegExp(`blob ${diffIds[0]} has digest`),
  });
});

t.test('truncated archives are refused when they are opened', async (t) => {
  const dir = t.testdir();
  await makeOciLayout(join(dir, 'layout'), { layers: [tar], compression: 'none' });
  const file = join(dir, 'layout.tar');
  await packLayout(join(dir, 'layout'), file);
  await truncate(file, statSync(file).size - 5000);
  await t.rejects(openSource(`oci-archive:${file}`), { code: 'CORRUPT', message: /layout\.tar: / });
});

t.test('a gzip whose trailer does not match its content is refused', async (t) => {
  const dir = t.testdir();
  const { manifestDigest } = await makeOciLayout(dir, { layers: [tar] });
  const manifest = JSON.parse(readFileSync(blobPath(dir, manifestDigest), 'utf8'));
  const wrong = gzipSync(tar);
  wrong[wrong.length - 6]! ^= 1;
  const layer = await putBlob(dir, wrong, manifest.layers[0].mediaType);
  await putIndex(dir, [await putJson(dir, { ...manifest, layers: [layer] }, manifest.mediaType)]);
  await t.rejects(readLayers(await openSource(`oci:${dir}`)), {
    code: 'CORRUPT',
    message: new RegExp(`blob ${layer.digest} is not valid gzip`),
  });
});

t.test('bytes after the compressed data unpack to nothing, but count for the digest', async (t) => {
  const dir = t.testdir();
  const { manifestDigest } = await makeOciLayout(dir, { layers: [tar] });
  const manifest = JSON.parse(readFileSync(blobPath(dir, manifestDigest), 'utf8'));
  for (const compression of ['gzip', 'zstd'] as const) {
    for (const tailBytes of [10, 5_000_000]) {
      const blob = Buffer.concat([compress(tar, compression), Buffer.alloc(tailBytes)]);
      const layer = await putBlob(dir, blob, `application/vnd.oci.image.layer.v1.tar+${compression}`);
      await putIndex(dir, [await putJson(dir, { ...manifest, layers: [layer] }, manifest.mediaType)]);
      await readLayers(await openSource(`oci:${dir}`));
      blob[blob.length - 1] = 1;
      writeFileSync(blobPath(dir, layer.digest), blob);
      await t.rejects(
        readLayers(await openSource(`oci:${dir}`)),
        { code: 'CORRUPT', message: new RegExp(`blob ${layer.digest}`) },
        `${compression}, ${tailBytes} bytes`,
      );
    }
  }
});

t.test('a reader that stops early leaves no file open', async (t) => {
  const dir = t.testdir();
  const open = () => readdirSync('/proc/self/fd').length;
  for (const compression of COMPRESSIONS) {
    await makeOciLayout(dir, { layers: [Buffer.alloc(50_000_000)], compression });
    const source = await openSource(`oci:${dir}`);
    const before = open();
    for (let round = 0; round < 3; round++) {
      for await (const part of source.layers[0]!.open()) {
        t.ok((part as Buffer).length > 0);
        break;
      }
    }
    for (let wait = 0; wait < 200 && open() > before; wait++)
      await new Promise((done) => setTimeout(done, 10));
    t.equal(open(), before, compression);
    await source.close();
  }
});

t.test('a flipped bit anywhere in an archive has no effect or fails with a LazydiskError', async (t) => {
  const dir = t.testdir();
  const files = {
    oci: join(dir, 'oci.tar'),
    docker: join(dir, 'docker.tar'),
  };
  const layers = [[{ name: 'a', body: 'content' }, { name: 'd/' }], [{ name: 'b', body: 'more' }]];
  await makeOciLayout(join(dir, 'layout'), { layers });
  await packLayout(join(dir, 'layout'), files.oci);
  await makeDockerArchive(files.docker, { layers });
  const open = async (spec: string) => {
    const source = await openSource(spec);
    try {
      const flat = await flattenAll(source);
      return { config: source.config, root: flat.image.root, chunks: flat.chunks };
    } finally {
      await source.close();
    }
  };
  for (const [kind, spec] of [
    ['oci', `oci-archive:${files.oci}`],
    ['docker', `docker-archive:${files.docker}`],
  ] as const) {
    const original = readFileSync(files[kind]);
    const expected = await open(spec);
    await fc.assert(
      fc.asyncProperty(fc.nat(original.length - 1), fc.nat(7), async (at, bit) => {
        const changed = Buffer.from(original);
        changed[at]! ^= 1 << bit;
        await writeFile(files[kind], changed);
        try {
          const result = await open(spec);
          // Bits that no digest covers (padding, owners in the outer tar, tags) must make no difference.
          t.same(result, expected);
        } catch (error) {
          if (!(error instanceof LazydiskError)) throw error;
        }
      }),
      { numRuns: 400 },
    );
  }
  t.pass('for all bits');
});

t.test('an archive with too many bytes of names is refused', async (t) => {
  const file = join(t.testdir(), 'archive');
  // A directory, because only its name counts.
  const entry = packEntry({ name: 'n'.repeat(4096), type: 'directory' });
  const names = (32 * 2 ** 20) / 4096;
  await writeFile(file, [...Array.from({ length: names }, () => entry), Buffer.alloc(1024)]);
  await t.rejects(openSource(`oci-archive:${file}`), { code: 'NOT_FOUND', message: /no index.json/ });
  await writeFile(file, [...Array.from({ length: names + 1 }, () => entry), Buffer.alloc(1024)]);
  await t.rejects(openSource(`oci-archive:${file}`), {
    code: 'UNSUPPORTED',
    message: /33554432 bytes of names/,
  });
});
