/** Key files are private and never overwritten, and each kind of invalid file is refused with KEY and a reason. */
import { execFileSync } from 'node:child_process';
import { chmodSync, mkdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { loadKeyFile, newKeyFile } from '../../src/keys/key-file.ts';

t.test('a new key file has mode 0600 under any umask, and loads', async (t) => {
  const dir = t.testdir();
  const umask = process.umask(0);
  t.teardown(() => process.umask(umask));
  const path = join(dir, 'key');
  const key = await newKeyFile(path, { domain: 'team-a' });
  t.equal(statSync(path).mode & 0o777, 0o600);
  const loaded = await loadKeyFile(path);
  t.equal(loaded.id, key.id);
  t.equal(loaded.domain, 'team-a');
  symlinkSync(path, join(dir, 'link'));
  t.equal((await loadKeyFile(join(dir, 'link'))).id, key.id, 'through a link, as secrets are mounted');
  chmodSync(path, 0o400);
  t.equal((await loadKeyFile(path)).id, key.id, 'a read-only file');
});

t.test('an existing file is never overwritten', async (t) => {
  const dir = t.testdir({ taken: 'precious' });
  await t.rejects(newKeyFile(join(dir, 'taken')), { code: 'EXISTS' });
  t.equal(readFileSync(join(dir, 'taken'), 'utf8'), 'precious');
  symlinkSync('/nowhere/at/all', join(dir, 'dangling'));
  await t.rejects(newKeyFile(join(dir, 'dangling')), { code: 'EXISTS' });
  await t.rejects(newKeyFile(join(dir, 'no', 'such', 'dir')), { code: 'UNAVAILABLE' });
  const results = await Promise.allSettled(Array.from({ length: 8 }, () => newKeyFile(join(dir, 'race'))));
  t.equal(
    results.filter(({ status }) => status === 'fulfilled').length,
    1,
    'of several at once, exactly one succeeds',
  );
});

t.test('a new key can join the domain of another', async (t) => {
  const dir = t.testdir();
  const a = await newKeyFile(join(dir, 'a'), { domain: 'shared' });
  await newKeyFile(join(dir, 'b'), { sharing: a });
  const b = await loadKeyFile(join(dir, 'b'));
  t.ok(b.salt(1).equals(a.salt(1)));
  t.equal(b.domain, 'shared');
  t.not(b.id, a.id);
});

t.test('a key file with any permission bit for group or others is refused', async (t) => {
  const path = join(t.testdir(), 'key');
  await newKeyFile(path);
  for (const bit of [0o040, 0o020, 0o010, 0o004, 0o002, 0o001]) {
    chmodSync(path, 0o600 | bit);
    await t.rejects(loadKeyFile(path), { code: 'KEY', message: /chmod 600/ });
  }
});

t.test('a missing or malformed file, or one that is not a regular file, is refused with KEY', async (t) => {
  const dir = t.testdir();
  const rejects = (name: string, message: RegExp) =>
    t.rejects(loadKeyFile(join(dir, name)), { code: 'KEY', message }, name);
  await rejects('missing', /lazydisk key new/);
  mkdirSync(join(dir, 'directory'), { mode: 0o700 });
  await rejects('directory', /not a regular file/);
  execFileSync('mkfifo', ['-m', '600', join(dir, 'fifo')]);
  await rejects('fifo', /not a regular file/);
  const put = (name: string, text: string | Buffer) => writeFileSync(join(dir, name), text, { mode: 0o600 });
  put('empty', '');
  await rejects('empty', /not a lazydisk key/);
  put('noise', Buffer.alloc(500, 0xff));
  await rejects('noise', /not a lazydisk key/);
  put('huge', Buffer.alloc(1 << 20, '{'));
  await rejects('huge', /too large/);
  await newKeyFile(join(dir, 'good'));
  const good = readFileSync(join(dir, 'good'), 'utf8');
  put('truncated', good.slice(0, -20));
  await rejects('truncated', /not a lazydisk key/);
  put(
    'tampered',
    good.replace(/("wrapKey": ")(.)/, (_, head: string, c: string) => head + (c === 'A' ? 'B' : 'A')),
  );
  await rejects('tampered', /corrupt/);
});
