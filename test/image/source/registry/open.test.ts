/** Images in a real registry (Debian's docker-registry), pushed there by skopeo. */
import { randomBytes } from 'node:crypto';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import type { ImageSource } from '../../../../src/image/source/image-source.ts';
import { openSource } from '../../../../src/image/source/open-source.ts';
import { makeAuthority } from '../../../support/certificates.ts';
import { DockerRegistry } from '../../../support/docker-registry.ts';
import { layersOf } from '../../../support/image.ts';
import { digestOf, makeOciLayout, packTar, putIndex, putJson, type TestImage } from '../../../support/oci.ts';
import { TokenServer } from '../../../support/token-server.ts';
import { skipWithout } from '../../../support/tools.ts';

const OCI_INDEX = 'application/vnd.oci.image.index.v1+json';
const OCI_MANIFEST = 'application/vnd.oci.image.manifest.v1+json';
const LOGIN = Buffer.from('alice:open sesame').toString('base64');

/** Larger than a part, smaller, and an empty tar. */
const tars = [
  packTar([{ name: 'large', body: randomBytes(9 * 2 ** 20) }]),
  packTar([{ name: 'small', body: 'small' }]),
  packTar([]),
];
const image: TestImage = { layers: tars, config: { Entrypoint: ['/init'], Env: ['A=1'] } };

/** Opens, reads all layers, closes. */
async function expectImage(t: Test, spec: string, expected: Buffer[], options = {}): Promise<ImageSource> {
  const source = await openSource(spec, { registry: options });
  try {
    const found = await layersOf(source);
    t.equal(found.length, expected.length, spec);
    t.ok(
      found.every((tar, at) => tar.equals(expected[at]!)),
      `the layers of ${spec}`,
    );
    return source;
  } finally {
    await source.close();
  }
}

async function startRegistry(t: Test, config = {}): Promise<DockerRegistry> {
  const registry = await DockerRegistry.start(config);
  t.teardown(() => registry.close());
  return registry;
}

if (!skipWithout(t, 'docker-registry', 'skopeo', 'openssl')) {
  t.test('images of each compression and format open by tag and by digest', async (t) => {
    const registry = await startRegistry(t);
    for (const compression of ['none', 'gzip', 'zstd'] as const) {
      const dir = t.testdir();
      const made = await makeOciLayout(dir, { ...image, compression });
      await registry.push(`oci:${dir}:latest`, `org/app:${compression}`, '--preserve-digests');
      const source = await expectImage(t, `${registry.host}/org/app:${compression}`, tars);
      t.equal(source.digest, made.manifestDigest);
      t.same(source.config.entrypoint, ['/init']);
      t.same(
        source.layers.map(({ digest }) => digest),
        made.layerDigests,
      );
      await expectImage(t, `docker://${registry.host}/org/app@${made.manifestDigest}`, tars);
      await expectImage(t, `${registry.host}/org/app:gone@${made.manifestDigest}`, tars);
    }
    const dir = t.testdir();
    await makeOciLayout(dir, image);
    await registry.push(`oci:${dir}:latest`, 'docker', '--format', 'v2s2');
    const source = await expectImage(t, `${registry.host}/docker`, tars);
    t.match(source.layers[0]!.mediaType, 'vnd.docker');
  });

  t.test('an index yields the image of the platform, or an error that lists the platforms', async (t) => {
    const registry = await startRegistry(t);
    const dir = t.testdir();
    const platforms = ['linux/amd64', 'linux/arm64', 'linux/arm/v7'];
    const images = [];
    for (const platform of platforms) {
      const layers = [packTar([{ name: platform.replaceAll('/', '-') }])];
      const made = await makeOciLayout(dir, { layers, platform });
      const [os, architecture, variant] = platform.split('/');
      const bytes = await readFile(join(dir, 'blobs/sha256', made.manifestDigest.slice(7)));
      const size = bytes.length;
      images.push({
        mediaType: OCI_MANIFEST,
        digest: made.manifestDigest,
        size,
        platform: { os, architecture, variant },
      });
    }
    const index = await putJson(
      dir,
      { schemaVersion: 2, mediaType: OCI_INDEX, manifests: images },
      OCI_INDEX,
    );
    await putIndex(dir, [{ ...index, annotations: { 'org.opencontainers.image.ref.name': 'all' } }]);
    await registry.push(`oci:${dir}:all`, 'multi:1', '--all');
    for (const [at, platform] of platforms.entries()) {
      const source = await openSource(`${registry.host}/multi:1`, { platform });
      t.equal(source.digest, images[at]!.digest, platform);
      t.match((await layersOf(source))[0]!.toString('latin1'), platform.replaceAll('/', '-'));
      await source.close();
    }
    await t.rejects(openSource(`${registry.host}/multi:1`, { platform: 'linux/riscv64' }), {
      code: 'NOT_FOUND',
      message: `${registry.host}/multi has no image for linux/riscv64; it has: linux/amd64, linux/arm64, linux/arm/v7`,
    });
  });

  t.test('errors for missing and corrupt images name them in one line', async (t) => {
    const registry = await startRegistry(t);
    const dir = t.testdir();
    await makeOciLayout(dir, image);
    await registry.push(`oci:${dir}:latest`, 'org/app:1');
    const at = (name: string) => openSource(`${registry.host}/${name}`);
    await t.rejects(at('org/app:2'), {
      code: 'NOT_FOUND',
      message: `${registry.host}/org/app: tag 2: not found (404 MANIFEST_UNKNOWN)`,
    });
    await t.rejects(at('org/none:1'), { code: 'NOT_FOUND', message: /org\/none: tag 1: not found \(404 / });
    const digest = digestOf(Buffer.from('x'));
    await t.rejects(at(`org/app@${digest}`), {
      code: 'NOT_FOUND',
      message: `${registry.host}/org/app: manifest ${digest}: not found (404 MANIFEST_UNKNOWN)`,
    });
    const source = await at('org/app:1');
    const [layer] = source.layers;
    const blob = layer!.digest.slice(7);
    const data = join(registry.dataDir, 'docker/registry/v2/blobs/sha256', blob.slice(0, 2), blob, 'data');
    await writeFile(data, (await readFile(data)).fill(0, 1_000_000, 1_000_100));
    await t.rejects(layersOf(source), {
      code: 'CORRUPT',
      message: new RegExp(
        `^${registry.host}/org/app: blob ${layer!.digest} (?:is not valid gzip|has digest sha256:[0-9a-f]{64}, expected)`,
      ),
    });
    await writeFile(data, (await readFile(data)).subarray(0, 5_000_000));
    await t.rejects(layersOf(source), {
      code: 'CORRUPT',
      message: `${registry.host}/org/app: blob ${layer!.digest}: it has 5000000 bytes, expected ${layer!.sizeBytes}`,
    });
    await source.close();
  });

  t.test('a login with a password from a file opens an image', async (t) => {
    const registry = await startRegistry(t, { auth: 'htpasswd' });
    const dir = t.testdir({ image: {} });
    await makeOciLayout(join(dir, 'image'), image);
    await registry.push(`oci:${dir}/image:latest`, 'app', '--dest-creds', 'alice:open sesame');
    const file = join(dir, 'auth.json');
    const spec = `${registry.host}/app`;
    await withAuthFile(file, async () => {
      await t.rejects(openSource(spec), {
        code: 'UNAVAILABLE',
        retryable: false,
        message: `${spec}: tag latest: unauthorised, and no login for it was found`,
      });
      await writeFile(file, JSON.stringify({ auths: { [registry.host]: { auth: LOGIN } } }));
      await expectImage(t, spec, tars);
      const wrong = Buffer.from('alice:guess').toString('base64');
      await writeFile(file, JSON.stringify({ auths: { [registry.host]: { auth: wrong } } }));
      await t.rejects(openSource(spec), {
        code: 'UNAVAILABLE',
        retryable: false,
        message: `${spec}: tag latest: unauthorised (401 UNAUTHORIZED), with the login from ${file}`,
      });
    });
  });

  t.test('a token is requested with the login, and renewed when it has expired', async (t) => {
    const dir = t.testdir({ image: {} });
    const tokens = await TokenServer.start(dir);
    t.teardown(() => tokens.close());
    const registry = await startRegistry(t, { auth: tokens.auth });
    await makeOciLayout(join(dir, 'image'), image);
    await registry.push(`oci:${dir}/image:latest`, 'org/app', '--dest-creds', 'alice:open sesame');
    const file = join(dir, 'auth.json');
    const spec = `${registry.host}/org/app`;
    tokens.asked.length = 0;
    await withAuthFile(file, async () => {
      await expectImage(t, spec, tars);
      t.equal(tokens.asked.length, 1, 'one token for a whole image');
      t.match(tokens.asked[0], { method: 'GET', authorization: undefined }, 'without a login');
      t.equal(tokens.asked[0]!.parameters.get('scope'), 'repository:org/app:pull');
      t.equal(tokens.asked[0]!.parameters.get('service'), tokens.auth.token.service);

      await writeFile(file, JSON.stringify({ auths: { [registry.host]: { auth: LOGIN } } }));
      await expectImage(t, spec, tars);
      t.equal(tokens.asked.at(-1)!.authorization, `Basic ${LOGIN}`);

      await writeFile(file, JSON.stringify({ auths: { [registry.host]: { identitytoken: 'refresh me' } } }));
      await expectImage(t, spec, tars);
      t.equal(tokens.asked.at(-1)!.method, 'POST');
      t.equal(tokens.asked.at(-1)!.parameters.get('refresh_token'), 'refresh me');

      // The registry tolerates a clock difference of a minute.
      tokens.validSeconds = -58;
      const before = tokens.asked.length;
      const source = await openSource(spec);
      while (tokens.asked.length === before + 1) {
        await sleep(500);
        t.ok((await layersOf(source))[1]!.equals(tars[1]!));
      }
      await source.close();
      tokens.validSeconds = 300;

      tokens.refusal = () => ({ status: 401, body: '{"details":"open sesame"}' });
      await t.rejects(openSource(spec), {
        retryable: false,
        message: new RegExp(
          `: tag latest: token server 127.0.0.1:\\d+: unauthorised \\(401\\), with the login from ${file}$`,
        ),
      });
      for (const body of [
        '',
        '{}',
        '{"token":""}',
        '{"token":"a\\nb"}',
        `{"token":"${'x'.repeat(70_000)}"}`,
        '[',
      ]) {
        tokens.refusal = () => ({ status: 200, body });
        await t.rejects(openSource(spec), { code: 'CORRUPT', message: /no valid token/ });
      }
    });
  });

  t.test("TLS is verified with the user's certificate authority", async (t) => {
    const dir = t.testdir({ image: {} });
    const { ca, ...tls } = await makeAuthority(dir);
    const registry = await startRegistry(t, { tls });
    await makeOciLayout(join(dir, 'image'), image);
    await registry.push(`oci:${dir}/image:latest`, 'app');
    await expectImage(t, `${registry.host}/app`, tars, { caFile: ca });
    await t.rejects(openSource(`${registry.host}/app`), {
      code: 'UNAVAILABLE',
      retryable: false,
      message: /\/app: tag latest: .*certificate.* \(--registry-ca names an authority to trust\)$/,
    });
    await t.rejects(openSource(`${registry.host}/app`, { registry: { caFile: join(dir, 'none') } }), {
      code: 'NOT_FOUND',
    });
    await t.rejects(openSource(`${registry.host}/app`, { registry: { caFile: tls.key } }), { code: 'USAGE' });
    await t.rejects(openSource(`${registry.host}/app`, { registry: { isPlainHttp: true } }), {
      code: 'UNAVAILABLE',
    });
  });

  t.test('a mirror is tried first, and the registry if the mirror fails', async (t) => {
    const dir = t.testdir();
    await makeOciLayout(dir, image);
    const registry = await startRegistry(t);
    await registry.push(`oci:${dir}:latest`, 'org/app');
    const mirror = await startRegistry(t, { proxyOf: `http://${registry.host}` });
    const prefixed = await startRegistry(t);
    await prefixed.push(`oci:${dir}:latest`, 'copies/of/org/app');
    const spec = `${registry.host}/org/app`;
    for (const to of [mirror.host, `http://${mirror.host}`, `${prefixed.host}/copies/of`, '127.0.0.1:1']) {
      await expectImage(t, spec, tars, { mirrors: [`${registry.host}=${to}`] });
    }
    // The mirror serves everything if the registry is gone.
    const other = `registry.invalid/org/app`;
    await expectImage(t, other, tars, { mirrors: [`registry.invalid=http://${mirror.host}`] });
    for (const mirrors of ['x', 'a=', '=b', 'a=b/C', 'a=ftp://b', 'a=b?c']) {
      await t.rejects(openSource(spec, { registry: { mirrors: [mirrors] } }), { code: 'USAGE' });
    }
  });
}

/** Runs `work` with the logins in `file` and no others. */
async function withAuthFile(file: string, work: () => Promise<void>): Promise<void> {
  const before = process.env.REGISTRY_AUTH_FILE;
  process.env.REGISTRY_AUTH_FILE = file;
  try {
    await work();
  } finally {
    if (before === undefined) delete process.env.REGISTRY_AUTH_FILE;
    else process.env.REGISTRY_AUTH_FILE = before;
  }
}
