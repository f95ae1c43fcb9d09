import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { mkdir, readFile, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import t from 'tap';
import { openSource } from '../../../src/image/source/open-source.ts';
import { layersOf } from '../../support/image.ts';
import {
  compress,
  digestOf,
  makeDockerArchive,
  makeOciLayout,
  packLayout,
  packTar,
  putBlob,
  putIndex,
  putJson,
  type TestImage,
} from '../../support/oci.ts';
import { skipWithout } from '../../support/tools.ts';

const LAYER = 'application/vnd.oci.image.layer.v1.tar';
const MANIFEST = 'application/vnd.oci.image.manifest.v1+json';
const INDEX = 'application/vnd.oci.image.index.v1+json';
const CONFIG = 'application/vnd.oci.image.config.v1+json';

const tars = [packTar([{ name: 'a', body: 'A'.repeat(5000) }]), packTar([{ name: 'b' }])];
const image: TestImage = {
  layers: tars,
  config: {
    Entrypoint: ['/init'],
    Cmd: ['-x'],
    Env: ['A=1', 'B=two words'],
    User: '1000:1000',
    WorkingDir: '/srv',
    Labels: { 'org.example': 'label', __proto__x: 'y' },
  },
};

for (const compression of ['none', 'gzip', 'zstd'] as const) {
  t.test(
    `a layout with layers of compression ${compression} opens as directory and as archives`,
    async (t) => {
      const dir = t.testdir();
      const made = await makeOciLayout(join(dir, 'layout'), { ...image, compression, tag: 'v1' });
      await packLayout(join(dir, 'layout'), join(dir, 'layout.tar'));
      for (const spec of [
        `oci:${dir}/layout`,
        `oci:${dir}/layout:v1`,
        `oci-archive:${dir}/layout.tar`,
        `oci-archive:${dir}/layout.tar:v1`,
        `docker-archive:${dir}/layout.tar`,
        `docker-archive:${dir}/layout.tar:v1`,
      ]) {
        const source = await openSource(spec);
        t.equal(source.description, spec);
        t.equal(source.digest, made.manifestDigest);
        t.same(source.config, {
          architecture: source.config.architecture,
          os: 'linux',
          entrypoint: ['/init'],
          cmd: ['-x'],
          env: ['A=1', 'B=two words'],
          user: '1000:1000',
          workingDir: '/srv',
          labels: { 'org.example': 'label', __proto__x: 'y' },
        });
        t.same(
          source.layers.map(({ digest, diffId }) => [digest, diffId]),
          made.layerDigests.map((digest, at) => [digest, made.diffIds[at]]),
        );
        t.same(await layersOf(source), tars, spec);
        await source.close();
      }
    },
  );

  t.test(`an old docker archive with layers of compression ${compression} opens`, async (t) => {
    const file = join(t.testdir(), 'image.tar');
    const made = await makeDockerArchive(file, { ...image, compression, tag: '3' });
    for (const spec of [`docker-archive:${file}`, `docker-archive:${file}:test:3`]) {
      const source = await openSource(spec);
      t.equal(source.digest, made.configDigest);
      t.same(await layersOf(source), tars);
      t.same(
        source.layers.map(({ digest }) => digest),
        made.diffIds,
      );
      await source.close();
    }
  });
}

t.test('equal layers that docker save stores as links are read', async (t) => {
  const file = join(t.testdir(), 'image.tar');
  await makeDockerArchive(file, { layers: [tars[0]!, tars[1]!, tars[0]!] });
  const source = await openSource(`docker-archive:${file}`);
  t.same(await layersOf(source), [tars[0], tars[1], tars[0]]);
  await source.close();
});

t.test('links in an archive never lead outside it', async (t) => {
  const dir = t.testdir({ secret: 'secret' });
  for (const target of [`${dir}/secret`, '../../../../../../etc/passwd', 'manifest-loop']) {
    const file = join(dir, 'image.tar');
    const config = Buffer.from(
      JSON.stringify({
        architecture: '',
        os: '',
        rootfs: { type: 'layers', diff_ids: [digestOf(Buffer.from('secret'))] },
      }),
    );
    const manifest = [{ Config: 'config.json', Layers: ['layer.tar'] }];
    await writeFile(
      file,
      packTar([
        { name: 'config.json', body: config },
        { name: 'layer.tar', type: 'symlink', target },
        { name: 'manifest-loop', type: 'symlink', target: 'layer.tar' },
        { name: 'manifest.json', body: JSON.stringify(manifest) },
      ]),
    );
    await t.rejects(openSource(`docker-archive:${file}`), {
      code: 'NOT_FOUND',
      message: /layer\.tar.* is missing/,
    });
  }
});

t.test('an image that skopeo writes is the same in each format', async (t) => {
  if (skipWithout(t, 'skopeo')) return;
  const dir = t.testdir();
  await makeOciLayout(join(dir, 'layout'), { ...image, tag: 'v1' });
  const copy = (to: string) =>
    execFileSync('skopeo', ['--insecure-policy', 'copy', '--quiet', `oci:${dir}/layout:v1`, to], {
      stdio: 'pipe',
    });
  for (const to of [
    `oci-archive:${dir}/o.tar:x`,
    `docker-archive:${dir}/d.tar:name:x`,
    `oci:${dir}/other:x`,
  ]) {
    copy(to);
    const source = await openSource(to);
    t.same(await layersOf(source), tars, to);
    t.same(source.config.env, ['A=1', 'B=two words']);
    await source.close();
  }
});

t.test('a layout that umoci created opens', async (t) => {
  if (skipWithout(t, 'umoci')) return;
  const dir = t.testdir({ rootfs: { hello: 'from umoci' } });
  const umoci = (...args: string[]) => execFileSync('umoci', args, { stdio: 'pipe' });
  umoci('init', '--layout', `${dir}/layout`);
  umoci('new', '--image', `${dir}/layout:t`);
  umoci('insert', '--rootless', '--image', `${dir}/layout:t`, `${dir}/rootfs`, '/data');
  umoci('config', '--image', `${dir}/layout:t`, '--config.user', 'nobody', '--config.env', 'X=y');
  const source = await openSource(`oci:${dir}/layout:t`);
  const [layer] = await layersOf(source);
  t.match(layer!.toString('latin1'), /from umoci/);
  t.match(source.config, { user: 'nobody', env: ['X=y'] });
  await source.close();
});

t.test('layers of several gzip members or zstd frames are read', async (t) => {
  const dir = t.testdir();
  const tar = packTar([{ name: 'f', body: Buffer.alloc(900_000, 'f') }]);
  const skippable = Buffer.from([0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
  const cut = 400_000;
  for (const [suffix, blob] of [
    ['+gzip', Buffer.concat([gzipSync(tar.subarray(0, cut)), gzipSync(tar.subarray(cut))])],
    [
      '+zstd',
      Buffer.concat([zstdCompressSync(tar.subarray(0, cut)), skippable, zstdCompressSync(tar.subarray(cut))]),
    ],
  ] as const) {
    await makeOciLayout(dir, { layers: [tar] });
    await replaceLayer(dir, blob, `${LAYER}${suffix}`);
    const source = await openSource(`oci:${dir}`);
    t.same(await layersOf(source), [tar], suffix);
    await source.close();
  }
});

/** Replaces the only layer by another blob with a correct descriptor. */
async function replaceLayer(dir: string, blob: Buffer, mediaType: string): Promise<void> {
  const index = JSON.parse(await readFile(join(dir, 'index.json'), 'utf8'));
  const path = join(dir, 'blobs/sha256', index.manifests[0].digest.slice(7));
  const manifest = JSON.parse(await readFile(path, 'utf8'));
  manifest.layers = [await putBlob(dir, blob, mediaType)];
  await putIndex(dir, [await putJson(dir, manifest, MANIFEST)]);
}

async function platformLayout(dir: string, platforms: string[]): Promise<Record<string, unknown>[]> {
  const descriptors: Record<string, unknown>[] = [];
  for (const platform of platforms) {
    const [os, architecture, variant] = platform.split('/');
    const { manifestDigest } = await makeOciLayout(dir, {
      layers: [packTar([{ name: platform.replaceAll('/', '-') }])],
      platform,
    });
    const size = (await readFile(join(dir, 'blobs/sha256', manifestDigest.slice(7)))).length;
    descriptors.push({
      mediaType: MANIFEST,
      digest: manifestDigest,
      size,
      platform: { os, architecture, ...(variant && { variant }) },
    });
  }
  return descriptors;
}

t.test('the requested platform is chosen, through nested indexes', async (t) => {
  const dir = t.testdir();
  const all = ['linux/amd64', 'linux/arm64/v8', 'linux/arm/v6', 'linux/arm/v7', 'linux/s390x'];
  const descriptors = await platformLayout(dir, all);
  const attestation = await putJson(dir, { schemaVersion: 2 }, MANIFEST);
  descriptors.unshift({ ...attestation, platform: { os: 'unknown', architecture: 'unknown' } });
  const inner = await putJson(dir, { schemaVersion: 2, mediaType: INDEX, manifests: descriptors }, INDEX);
  const outer = await putJson(dir, { schemaVersion: 2, mediaType: INDEX, manifests: [inner] }, INDEX);
  await putIndex(dir, [outer]);
  for (const [platform, wanted] of [
    ['linux/amd64', 'linux-amd64'],
    ['linux/amd64/v1', 'linux-amd64'],
    ['linux/arm64', 'linux-arm64-v8'],
    ['linux/arm64/v8', 'linux-arm64-v8'],
    ['linux/arm', 'linux-arm-v7'],
    ['linux/arm/v6', 'linux-arm-v6'],
    ['linux/s390x', 'linux-s390x'],
  ] as const) {
    const source = await openSource(`oci:${dir}`, { platform });
    t.match((await layersOf(source))[0]!.toString('latin1'), new RegExp(`^${wanted}\\0`), platform);
    await source.close();
  }
  await t.rejects(openSource(`oci:${dir}`, { platform: 'linux/riscv64' }), {
    code: 'NOT_FOUND',
    message: /no image for linux\/riscv64; it has: unknown\/unknown, linux\/amd64, linux\/arm64\/v8/,
  });
  await t.rejects(openSource(`oci:${dir}`, { platform: 'linux/amd64/v3' }), { code: 'NOT_FOUND' });
});

t.test('this machine’s platform is the default', async (t) => {
  const dir = t.testdir();
  const here = `linux/${process.arch === 'x64' ? 'amd64' : process.arch}`;
  const descriptors = await platformLayout(dir, ['linux/mips', here, 'windows/amd64']);
  await putIndex(dir, descriptors);
  const source = await openSource(`oci:${dir}`);
  t.equal(`${source.config.os}/${source.config.architecture}`, here);
  await source.close();
});

t.test('a single image of another platform is refused by its config', async (t) => {
  const dir = t.testdir();
  await makeOciLayout(join(dir, 'layout'), { ...image, platform: 'linux/mips' });
  await makeDockerArchive(join(dir, 'd.tar'), { ...image, platform: 'linux/mips' });
  for (const spec of [`oci:${dir}/layout`, `docker-archive:${dir}/d.tar`]) {
    await t.rejects(openSource(spec), { code: 'NOT_FOUND', message: /no image for .*; it has: linux\/mips/ });
    const source = await openSource(spec, { platform: 'linux/mips' });
    await source.close();
  }
});

t.test('one of several images must be chosen by its name', async (t) => {
  const dir = t.testdir();
  const manifests: Record<string, unknown>[] = [];
  for (const tag of ['one', 'two']) {
    await makeOciLayout(dir, { layers: [packTar([{ name: tag }])], tag });
    manifests.push(...JSON.parse(readFileSync(join(dir, 'index.json'), 'utf8')).manifests);
  }
  manifests.push({
    ...manifests[0],
    annotations: {
      'io.containerd.image.name': 'docker.io/library/three:latest',
      'org.opencontainers.image.ref.name': 'latest',
    },
  });
  await putIndex(dir, manifests);
  const two = await openSource(`oci:${dir}:two`);
  t.match((await layersOf(two))[0]!.toString('latin1'), /^two\0/);
  await two.close();
  for (const name of ['three', 'three:latest', 'library/three', 'docker.io/library/three:latest', 'latest']) {
    const three = await openSource(`oci:${dir}:${name}`);
    await three.close();
  }
  await t.rejects(openSource(`oci:${dir}`), { code: 'USAGE', message: /name one of: one, two, latest/ });
  await t.rejects(openSource(`oci:${dir}:four`), {
    code: 'NOT_FOUND',
    message: /no image named "four"; it has: one, two/,
  });
});

t.test('missing and invalid sources are refused', async (t) => {
  const dir = t.testdir({ file: 'x', empty: {} });
  for (const spec of ['./nothing', '/oci', 'oci:', 'docker://', 'oci:dir:', 'oci::tag', '']) {
    await t.rejects(openSource(spec), { code: 'USAGE', message: /image source/ }, JSON.stringify(spec));
  }
  await t.rejects(openSource(`oci:${dir}/none`), { code: 'NOT_FOUND' });
  await t.rejects(openSource(`oci:${dir}/file`), { code: 'NOT_FOUND' });
  await t.rejects(openSource(`oci:${dir}/empty`), {
    code: 'NOT_FOUND',
    message: /not an OCI layout: it has no index\.json/,
  });
  await t.rejects(openSource(`oci-archive:${dir}/none`), { code: 'NOT_FOUND' });
  await t.rejects(openSource(`oci-archive:${dir}/empty`), { code: 'NOT_FOUND' });
  await t.rejects(openSource(`oci-archive:${dir}/file`), { code: 'CORRUPT', message: /file: tar at byte 0/ });
  await writeFile(join(dir, 'other.tar'), tars[0]!);
  await t.rejects(openSource(`docker-archive:${dir}/other.tar`), {
    code: 'NOT_FOUND',
    message: /no manifest\.json/,
  });
  await t.rejects(openSource(`oci:${dir}`, { platform: 'linux' }), {
    code: 'USAGE',
    message: /want os\/arch/,
  });
});

t.test('compressed archives are refused, and the error says how to unpack them', async (t) => {
  const dir = t.testdir();
  for (const compression of ['gzip', 'zstd'] as const) {
    const file = join(dir, compression);
    await writeFile(file, compress(tars[0]!, compression));
    await t.rejects(openSource(`docker-archive:${file}`), {
      code: 'UNSUPPORTED',
      message: new RegExp(`compressed with ${compression}; .*${compression} -d`),
    });
  }
});

t.test('layers of unsupported types are refused, and the error says why', async (t) => {
  const dir = t.testdir();
  for (const [mediaType, why] of [
    [`${LAYER}+gzip+encrypted`, /it is encrypted/],
    ['application/vnd.oci.image.layer.nondistributable.v1.tar+gzip', /not part of the image/],
    ['application/vnd.docker.image.rootfs.foreign.diff.tar.gzip', /not part of the image/],
    [`${LAYER}+lz4`, /want tar, gzip or zstd/],
  ] as const) {
    await makeOciLayout(dir, { layers: [tars[0]!] });
    await replaceLayer(dir, tars[0]!, mediaType);
    await t.rejects(openSource(`oci:${dir}`), { code: 'UNSUPPORTED', message: why });
  }
});

t.test('Docker’s media types are read as OCI’s', async (t) => {
  const dir = t.testdir();
  await makeOciLayout(dir, { layers: [tars[0]!] });
  for (const [mediaType, blob] of [
    ['application/vnd.docker.image.rootfs.diff.tar', tars[0]!],
    ['application/vnd.docker.image.rootfs.diff.tar.gzip', gzipSync(tars[0]!)],
    ['application/vnd.docker.image.rootfs.diff.tar.zstd', zstdCompressSync(tars[0]!)],
  ] as const) {
    const diff = { type: 'layers', diff_ids: [digestOf(tars[0]!)] };
    const config = await putJson(
      dir,
      { architecture: '', os: '', config: null, rootfs: diff },
      'application/vnd.docker.container.image.v1+json',
    );
    const layers = [await putBlob(dir, blob, mediaType)];
    const type = 'application/vnd.docker.distribution.manifest.v2+json';
    const manifest = await putJson(dir, { schemaVersion: 2, config, layers }, type);
    const list = 'application/vnd.docker.distribution.manifest.list.v2+json';
    await putIndex(dir, [await putJson(dir, { schemaVersion: 2, manifests: [manifest] }, list)]);
    const source = await openSource(`oci:${dir}`);
    t.same(await layersOf(source), [tars[0]], mediaType);
    await source.close();
  }
});

t.test('artifacts and documents of other kinds are refused', async (t) => {
  const dir = t.testdir();
  await makeOciLayout(dir, image);
  const config = await putJson(dir, {}, 'application/vnd.cncf.helm.config.v1+json');
  await putIndex(dir, [await putJson(dir, { schemaVersion: 2, config, layers: [] }, MANIFEST)]);
  await t.rejects(openSource(`oci:${dir}`), { code: 'UNSUPPORTED', message: /of an artifact .*helm/ });
  await putIndex(dir, [await putJson(dir, {}, 'application/vnd.docker.distribution.manifest.v1+json')]);
  await t.rejects(openSource(`oci:${dir}`), { code: 'UNSUPPORTED', message: /not an image/ });
});

t.test('an index that is nested too deeply is refused', async (t) => {
  const dir = t.testdir();
  await makeOciLayout(dir, image);
  let inner = await putJson(dir, { schemaVersion: 2, manifests: [] }, INDEX);
  for (let depth = 0; depth < 10; depth++)
    inner = await putJson(dir, { schemaVersion: 2, manifests: [inner] }, INDEX);
  await putIndex(dir, [inner]);
  await t.rejects(openSource(`oci:${dir}`), { code: 'UNSUPPORTED', message: /nested more than 4 deep/ });
});

t.test('an invalid digest, such as a path, is refused', async (t) => {
  const dir = t.testdir({ secret: '{}' });
  const layout = join(dir, 'layout');
  await makeOciLayout(layout, image);
  for (const digest of [
    'sha256:../../../secret',
    '../../secret',
    `sha256:${'A'.repeat(64)}`,
    'md5:00',
    '',
    'sha256:',
  ]) {
    await putIndex(layout, [{ mediaType: MANIFEST, digest, size: 2 }]);
    await t.rejects(openSource(`oci:${layout}`), {
      code: 'CORRUPT',
      message: /not a sha256 or sha512 digest/,
    });
  }
});

t.test('blobs with sha512 digests are read', async (t) => {
  const dir = t.testdir();
  await makeOciLayout(dir, { layers: [tars[0]!] });
  const blob = gzipSync(tars[0]!);
  const hex = createHash('sha512').update(blob).digest('hex');
  await mkdir(join(dir, 'blobs/sha512'));
  await writeFile(join(dir, 'blobs/sha512', hex), blob);
  const config = await putJson(dir, { rootfs: { type: 'layers', diff_ids: [digestOf(tars[0]!)] } }, CONFIG);
  const layers = [{ mediaType: `${LAYER}+gzip`, digest: `sha512:${hex}`, size: blob.length }];
  await putIndex(dir, [await putJson(dir, { schemaVersion: 2, config, layers }, MANIFEST)]);
  const source = await openSource(`oci:${dir}`);
  t.same(await layersOf(source), [tars[0]]);
  await source.close();
});

t.test('a layout whose blobs are symlinks, as build systems create them, opens', async (t) => {
  const dir = t.testdir();
  await makeOciLayout(join(dir, 'layout'), image);
  await rename(join(dir, 'layout/blobs'), join(dir, 'elsewhere'));
  await symlink('../elsewhere', join(dir, 'layout/blobs'));
  const source = await openSource(`oci:${dir}/layout`);
  t.same(await layersOf(source), tars);
  await source.close();
  await rm(join(dir, 'layout/index.json'));
  execFileSync('mkfifo', [join(dir, 'layout/index.json')]);
  await t.rejects(openSource(`oci:${dir}/layout`), { code: 'NOT_FOUND' }, 'a FIFO does not block');
});
