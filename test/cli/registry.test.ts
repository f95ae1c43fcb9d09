/** `lazydisk build` from a registry, as a user runs it. */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import type { BuildReport } from '../../src/image/build.ts';
import { buildWorkplace, lazydisk, lazydiskJson } from '../support/daemon.ts';
import { DockerRegistry } from '../support/docker-registry.ts';
import { makeOciLayout } from '../support/oci.ts';
import { skipWithout } from '../support/tools.ts';

if (!skipWithout(t, 'docker-registry', 'skopeo')) {
  t.test('an image in a registry gives the disk that its layout gives', async (t) => {
    const { dir, store, key } = await buildWorkplace(t);
    const registry = await DockerRegistry.start({ auth: 'htpasswd' });
    t.teardown(() => registry.close());
    await makeOciLayout(join(dir, 'app'), { layers: [[{ name: 'hello', body: 'world' }]] });
    const creds = ['--preserve-digests', '--dest-creds', 'alice:open sesame'];
    await registry.push(`oci:${dir}/app:latest`, 'org/app:1', ...creds);
    const build = (source: string) => ['build', source, '--name', 'app', '--store', store, '--key', key];
    const image = `${registry.host}/org/app:1`;
    const expected = await lazydiskJson<BuildReport>(build(`oci:${dir}/app`));
    const env = { REGISTRY_AUTH_FILE: join(dir, 'auth.json') };

    const refused = await lazydisk(build(image), env);
    t.equal(refused.code, 10);
    t.equal(
      refused.stderr,
      `lazydisk: ${image.replace(':1', '')}: tag 1: unauthorised, and no login for it was found\n`,
    );
    const auth = Buffer.from('alice:open sesame').toString('base64');
    await writeFile(env.REGISTRY_AUTH_FILE, JSON.stringify({ auths: { [registry.host]: { auth } } }));
    for (const source of [image, `docker://${image}`]) {
      const built = await lazydiskJson<BuildReport>(build(source), env);
      t.equal(built.digest, expected.digest, source);
      t.equal(built.newChunks, 0);
    }
    const mirrored = [
      ...build('mirrored.invalid/org/app:1'),
      '--registry-mirror',
      `mirrored.invalid=${registry.host}`,
    ];
    t.equal((await lazydisk(mirrored, env)).code, 0);
    const gone = await lazydisk(build(image.replace(':1', ':2')), env);
    t.equal(gone.code, 3);
    t.match(gone.stderr, /^lazydisk: .*org\/app: tag 2: not found \(404 MANIFEST_UNKNOWN\)\n$/);
    for (const words of [['App'], [image, '--registry-mirror', 'x']]) {
      t.equal((await lazydisk([...build(words[0]!), ...words.slice(1)], env)).code, 2);
    }
  });
}
