/** The environment of a build (time zone, locale, umask, working directory) does not affect the disk. */
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import t from 'tap';
import { makeOciLayout } from '../../support/oci.ts';

const CHILD = join(import.meta.dirname, 'digest-child.ts');

t.test('one image has one digest in every environment', async (t) => {
  const dir = t.testdir({ elsewhere: {} });
  const oci = join(dir, 'oci');
  const names = ['z', 'ä', 'a', 'B', 'ß', 'İ', 'i'];
  await makeOciLayout(oci, {
    layers: [
      names.map((name) => ({ name: `etc/${name}`, body: name.repeat(5000) })),
      [{ name: 'etc/.wh.a' }],
    ],
  });
  const surroundings = [
    { env: { TZ: 'UTC', LC_ALL: 'C' }, umask: '022', cwd: dir },
    { env: { TZ: 'Asia/Kathmandu', LC_ALL: 'tr_TR.UTF-8', LANG: 'tr' }, umask: '077', cwd: '/' },
    { env: { TZ: 'America/St_Johns', LC_ALL: 'sv_SE.UTF-8' }, umask: '000', cwd: join(dir, 'elsewhere') },
  ];
  const digests = surroundings.map(({ env, umask, cwd }) =>
    execFileSync('sh', ['-c', `umask ${umask}; exec "$@"`, 'sh', process.execPath, CHILD, `oci:${oci}`], {
      env: { ...process.env, ...env },
      cwd,
      encoding: 'utf8',
    }),
  );
  t.match(digests[0], /^[0-9a-f]{64} 1073741824$/);
  t.equal(new Set(digests).size, 1, digests.join(', '));
});
