/** sha256 compared with node:crypto. */
import { createHash, randomBytes } from 'node:crypto';
import t from 'tap';
import { sha256 } from '../../native/index.ts';

t.test('the digest equals that of node:crypto for any length, many at once', async (t) => {
  const lengths = [0, 1, 55, 56, 64, 4096, 524_305];
  const hashes = lengths.map((length) => {
    const bytes = randomBytes(length);
    const expected = createHash('sha256').update(bytes).digest();
    return new Promise<void>((resolve) => {
      const digest = Buffer.alloc(32);
      sha256(bytes, digest, (isDone) => {
        t.equal(isDone, 1);
        t.ok(digest.equals(expected), `${length} bytes`);
        resolve();
      });
    });
  });
  await Promise.all(hashes);
});

t.test('invalid arguments are a TypeError', async (t) => {
  const call = sha256 as (...words: unknown[]) => void;
  for (const words of [
    [],
    [Buffer.alloc(1), Buffer.alloc(31), () => 0],
    ['a', Buffer.alloc(32), () => 0],
    [Buffer.alloc(1), Buffer.alloc(32), 1],
  ])
    t.throws(() => call(...words), TypeError);
});
