/** What unprivileged.test.ts runs as another user: mount, read, unmount; then mount again, be killed, clean up. */
import { once } from 'node:events';
import { join } from 'node:path';
import { cleanStaleMount } from '../../../src/export/fuse/mount.ts';
import { CHUNK_BYTES } from '../../../src/format/chunk-id.ts';
import { startDaemon } from './daemon-child.ts';
import { sh } from './mounted.ts';

const dir = join(process.argv[2]!, 'drives');
const spec = { dir, content: { sizeBytes: 16 * CHUNK_BYTES, seed: 3 }, pushChunks: true };
const say = (what: string, value: unknown) => console.log(`${what}: ${String(value).trim()}`);
const mounts = async () => (await sh('grep -c " $1 " /proc/self/mountinfo', dir)).stdout;

say('user', process.geteuid?.());
const first = await startDaemon(spec);
say('bytes', (await sh('cat "$1" | wc -c', join(dir, 'drive'))).stdout);
say('mounts', await mounts());
say('ended', (await first.stop()).includes('unmounted'));
say('mounts', await mounts());

const second = await startDaemon(spec);
say('bytes', (await sh('cat "$1" | wc -c', join(dir, 'drive'))).stdout);
second.child.kill('SIGKILL');
await once(second.child, 'exit');
say('cleaned', await cleanStaleMount(dir));
say('mounts', await mounts());
