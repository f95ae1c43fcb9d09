/**
 * Mounting as an unprivileged user, through fusermount3. When run by root, it becomes nobody for that, with a /dev/fuse
 * that everyone may open (as on most systems), in a separate mount namespace.
 */
import { chown, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { CHUNK_BYTES } from '../../../src/format/chunk-id.ts';
import { skip, skipWithoutFuse } from '../../support/tools.ts';
import { sh } from './mounted.ts';

const NOBODY = 65534;
const BECOME = `setpriv --reuid=${NOBODY} --regid=${NOBODY} --clear-groups`;
const IN_NAMESPACE = `set -e
  mknod "$3/device" c 10 229; chmod 666 "$3/device"
  mount --bind "$3/device" /dev/fuse
  exec ${BECOME} env LD_PRELOAD="$4" "$1" "$2" "$3"`;

t.test('a user mounts, reads, unmounts, and cleans up after a kill', async (t) => {
  if (skipWithoutFuse(t, 'fusermount3', 'setpriv', 'unshare')) return;
  const session = join(import.meta.dirname, 'user-session.ts');
  const isRoot = process.geteuid?.() === 0;
  if (isRoot) {
    const may = await sh(`${BECOME} test -r "$1" && ${BECOME} test -x "$2"`, session, process.execPath);
    if (may.code !== 0) return skip(t, 'a checkout that nobody can read');
  }
  const parent = await mkdtemp(join(tmpdir(), 'lazydisk-user-'));
  t.teardown(() => rm(parent, { recursive: true }));
  if (isRoot) await chown(parent, NOBODY, NOBODY);
  const args = [process.execPath, session, parent, process.env.LD_PRELOAD ?? ''];
  const { stdout, stderr } = isRoot
    ? await sh(`exec unshare -m sh -c '${IN_NAMESPACE}' sh "$@"`, ...args)
    : await sh('LD_PRELOAD="$4" exec "$1" "$2" "$3"', ...args);
  const bytes = 16 * CHUNK_BYTES;
  const user = isRoot ? NOBODY : process.geteuid?.();
  const mounted = [`bytes: ${bytes}`, 'mounts: 1', 'ended: true', 'mounts: 0'];
  const killed = [`bytes: ${bytes}`, 'cleaned: true', 'mounts: 0'];
  t.same(stdout.toString().trim().split('\n'), [`user: ${user}`, ...mounted, ...killed], stderr);
});
