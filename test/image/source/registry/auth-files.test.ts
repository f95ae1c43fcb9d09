/** Logins to registries: Docker's and podman's files, and credential helpers, which are real programs here. */
import assert from 'node:assert/strict';
import { chmod, mkdir, readFile, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { LazydiskError } from '../../../../src/errors.ts';
import { findCredential } from '../../../../src/image/source/registry/auth-files.ts';
import { askCredentialHelper } from '../../../../src/image/source/registry/credential-helper.ts';
import { parseReference } from '../../../../src/image/source/registry/reference.ts';

const base64 = (text: string) => Buffer.from(text).toString('base64');

async function put(path: string, document: unknown): Promise<void> {
  await mkdir(dirname(path), { recursive: true });
  await writeFile(path, typeof document === 'string' ? document : JSON.stringify(document));
}

/** Puts a credential helper with this shell script on the PATH. */
async function helper(t: Test, name: string, script: string): Promise<string> {
  const dir = t.testdir();
  const path = join(dir, `docker-credential-${name}`);
  await writeFile(path, `#!/bin/sh\n${script}\n`);
  await chmod(path, 0o755);
  const before = process.env.PATH;
  process.env.PATH = `${dir}:${before}`;
  t.teardown(() => {
    process.env.PATH = before;
  });
  return dir;
}

const passwordOf = (found: Awaited<ReturnType<typeof findCredential>>) =>
  found?.credential.kind === 'password' ? `${found.credential.user}:${found.credential.password}` : found;

t.test('the entry for the longest part of a name is used', async (t) => {
  const file = join(t.testdir(), 'auth.json');
  const auths = {
    'r.example': { auth: base64('host:p') },
    'r.example/org': { auth: base64('org:p') },
    'r.example/org/app': { auth: base64('app:p:with:colons') },
    'https://index.docker.io/v1/': { username: 'hub', password: 'p' },
    'https://old.example/v2/': { auth: base64('old:p') },
    'identity.example': { auth: base64('ignored:x'), identitytoken: 'idt' },
    'bearer.example': { registrytoken: 'rgt' },
    'empty.example': {},
  };
  await put(file, { auths });
  const of = (name: string) => findCredential(parseReference(name), { REGISTRY_AUTH_FILE: file });
  t.equal(passwordOf(await of('r.example/org/app')), 'app:p:with:colons');
  t.equal(passwordOf(await of('r.example/org/application')), 'org:p');
  t.equal(passwordOf(await of('r.example/other')), 'host:p');
  t.equal(passwordOf(await of('nginx')), 'hub:p');
  t.equal(passwordOf(await of('old.example/x')), 'old:p');
  t.match(await of('identity.example/x'), { credential: { kind: 'identity', token: 'idt' }, from: file });
  t.match(await of('bearer.example/x'), { credential: { kind: 'bearer', token: 'rgt' } });
  for (const name of ['empty.example/x', 'r.example:5000/org', 'none.example/x', 'r.example.evil/x']) {
    t.equal(await of(name), undefined, name);
  }
});

t.test('login files are read in order of precedence', async (t) => {
  const dir = t.testdir();
  const environment = {
    XDG_RUNTIME_DIR: join(dir, 'run'),
    HOME: join(dir, 'home'),
  };
  const of = (more = {}) => findCredential(parseReference('r.example/app'), { ...environment, ...more });
  const login = (user: string) => ({ auths: { 'r.example': { auth: base64(`${user}:p`) } } });
  t.equal(await of(), undefined, 'none of them exists');
  await put(join(dir, 'home/.docker/config.json'), login('docker'));
  t.equal(passwordOf(await of()), 'docker:p');
  await put(join(dir, 'elsewhere/config.json'), login('elsewhere'));
  t.equal(passwordOf(await of({ DOCKER_CONFIG: join(dir, 'elsewhere') })), 'elsewhere:p');
  await put(join(dir, 'home/.config/containers/auth.json'), login('config'));
  t.equal(passwordOf(await of()), 'config:p');
  await put(join(dir, 'run/containers/auth.json'), login('runtime'));
  t.equal(passwordOf(await of()), 'runtime:p');
  await put(join(dir, 'mine.json'), login('mine'));
  t.equal(passwordOf(await of({ REGISTRY_AUTH_FILE: join(dir, 'mine.json') })), 'mine:p');
  t.equal(await of({ REGISTRY_AUTH_FILE: join(dir, 'none.json') }), undefined, 'no other file is read');
});

t.test('malformed files are refused with their name, and not quoted', async (t) => {
  const file = join(t.testdir(), 'auth.json');
  const of = () => findCredential(parseReference('r.example/app'), { REGISTRY_AUTH_FILE: file });
  const secret = 'c2VjcmV0';
  const cases = [
    `{"auths": ${secret}`,
    `"${secret}"`,
    `{"auths": "${secret}"}`,
    `{"auths": {"r.example": "${secret}"}}`,
    { auths: { 'r.example': { auth: base64('no colon') } } },
    { auths: { 'r.example': { auth: 7 } } },
    `{"auths":{}, "pad":"${'x'.repeat(5 * 2 ** 20)}"}`,
  ];
  for (const document of cases) {
    await put(file, document);
    const error = await of().catch((error: unknown) => error as Error);
    t.match(error, { code: 'CORRUPT', message: new RegExp(`^logins to registries in ${file}: `) });
    t.notMatch((error as Error).message, secret);
  }
});

t.test('property: any file yields a login, none, or CORRUPT', async (t) => {
  const file = join(t.testdir(), 'auth.json');
  const text = fc.oneof(fc.json(), fc.string());
  const entry = fc.record(
    { auth: fc.oneof(fc.base64String(), fc.string()), username: fc.string() },
    { requiredKeys: [] },
  );
  const shaped = fc.record({
    auths: fc.dictionary(fc.constantFrom('r.example', '__proto__', 'https://r.example/v1/'), entry),
  });
  await fc.assert(
    fc.asyncProperty(
      fc.oneof(
        text,
        shaped.map((value) => JSON.stringify(value)),
      ),
      async (document) => {
        await writeFile(file, document);
        try {
          await findCredential(parseReference('r.example/app'), { REGISTRY_AUTH_FILE: file });
        } catch (error) {
          assert(error instanceof LazydiskError && error.code === 'CORRUPT', `${error}`);
        }
      },
    ),
    { numRuns: 300 },
  );
  t.pass();
});

t.test('credential helpers are called by their protocol', async (t) => {
  const script = `echo "$1" > "$(dirname "$0")/word"; cat > "$(dirname "$0")/asked"`;
  const dir = await helper(t, 'test', `${script}; echo '{"ServerURL":"x","Username":"u","Secret":"s"}'`);
  const file = join(dir, 'auth.json');
  const of = (name: string) => findCredential(parseReference(name), { REGISTRY_AUTH_FILE: file });
  await put(file, { credHelpers: { 'r.example': 'test' } });
  t.match(await of('r.example/app'), {
    credential: { kind: 'password', user: 'u', password: 's' },
    from: 'docker-credential-test',
  });
  t.equal(await readFile(join(dir, 'asked'), 'utf8'), 'r.example');
  t.equal(await readFile(join(dir, 'word'), 'utf8'), 'get\n');
  t.equal(await of('other.example/app'), undefined);

  await put(file, { credsStore: 'test', auths: { 'https://index.docker.io/v1/': {} } });
  t.equal(passwordOf(await of('nginx')), 'u:s');
  t.equal(await readFile(join(dir, 'asked'), 'utf8'), 'https://index.docker.io/v1/');
});

t.test('a helper may have no login, or a token', async (t) => {
  await helper(t, 'none', "echo 'credentials not found in native keychain'; exit 1");
  t.equal(await askCredentialHelper('none', 'r.example'), undefined);
  await helper(t, 'token', `echo '{"Username":"<token>","Secret":"idt"}'`);
  t.same(await askCredentialHelper('token', 'r.example'), { kind: 'identity', token: 'idt' });
});

t.test('a helper that fails, hangs, writes too much or is missing is reported, and not quoted', async (t) => {
  const cases: [string, RegExp][] = [
    ['echo hush; exit 3', /it failed for r\.example \(exit code 3\)$/],
    ['echo hush', /its answer is not valid JSON$/],
    [`echo '{"Username":"hush"}'`, /its answer has no Username or Secret$/],
    [`echo '{"Username":"hush","Secret":""}'`, /its answer has no Username or Secret$/],
    ['while :; do echo hush hush hush hush hush hush; done', /its answer is too long$/],
  ];
  for (const [script, message] of cases) {
    await helper(t, 'bad', script);
    const error = await askCredentialHelper('bad', 'r.example').catch((error: unknown) => error as Error);
    t.match(error, { code: 'UNAVAILABLE', retryable: false, message });
    t.notMatch((error as Error).message, /hush/);
  }
  // A child of the helper keeps its output open.
  await helper(t, 'slow', 'sleep 1000 & sleep 1000');
  await t.rejects(askCredentialHelper('slow', 'r.example', undefined, 200), {
    message: /no answer within 200 ms$/,
  });
  const stop = new AbortController();
  const asked = askCredentialHelper('slow', 'r.example', stop.signal);
  stop.abort();
  await t.rejects(asked, { code: 'ABORTED' });
  await t.rejects(askCredentialHelper('gone', 'r.example'), {
    message: /docker-credential-gone: it is not installed$/,
  });
  for (const name of ['', '../x', 'a b', '-x', 'x'.repeat(200)]) {
    await t.rejects(askCredentialHelper(name, 'r.example'), { message: /not a valid name$/ });
  }
});
