/** References to images in registries. */
import assert from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import { LazydiskError } from '../../../../src/errors.ts';
import { endpointsOf } from '../../../../src/image/source/registry/endpoint.ts';
import { parseReference } from '../../../../src/image/source/registry/reference.ts';

const DIGEST = `sha256:${'0'.repeat(64)}`;

t.test('valid references are parsed', async (t) => {
  const cases: [string, string, string, string][] = [
    ['nginx', 'docker.io', 'library/nginx', 'latest'],
    ['nginx:1.27', 'docker.io', 'library/nginx', '1.27'],
    ['docker://nginx:1.27', 'docker.io', 'library/nginx', '1.27'],
    ['library/nginx', 'docker.io', 'library/nginx', 'latest'],
    ['docker.io/nginx', 'docker.io', 'library/nginx', 'latest'],
    ['index.docker.io/org/app', 'docker.io', 'org/app', 'latest'],
    ['org/app:v1', 'docker.io', 'org/app', 'v1'],
    ['hub.example/org/app:1', 'hub.example', 'org/app', '1'],
    ['HUB.example/org/app', 'hub.example', 'org/app', 'latest'],
    ['localhost/app', 'localhost', 'app', 'latest'],
    ['localhost:5000/a/b/c:x', 'localhost:5000', 'a/b/c', 'x'],
    ['127.0.0.1:5000/app', '127.0.0.1:5000', 'app', 'latest'],
    ['[::1]:5000/app:1', '[::1]:5000', 'app', '1'],
    [`app@${DIGEST}`, 'docker.io', 'library/app', DIGEST],
    [`r.example/app:1@${DIGEST}`, 'r.example', 'app', DIGEST],
    ['a__b/c-d--e.f_g', 'docker.io', 'a__b/c-d--e.f_g', 'latest'],
    [`x:${'t'.repeat(128)}`, 'docker.io', 'library/x', 't'.repeat(128)],
  ];
  for (const [text, registry, repository, version] of cases) {
    t.same(parseReference(text), { registry, repository, version }, text);
  }
});

t.test('invalid references are refused with USAGE', async (t) => {
  const words = [
    '',
    ':',
    'docker://',
    'App',
    'a//b',
    '/a',
    'a/',
    'a:',
    'a@',
    'a@sha256:0',
    'a:b:c',
    'a b',
    'a..b',
  ];
  const long = ['a'.repeat(256), `x:${'t'.repeat(129)}`, 'x'.repeat(10_000), `a/${'b/'.repeat(200)}c`];
  const hosts = [
    'r.example:99999/a',
    'r.example:x/a',
    '-r.example/a',
    'r_x.example/a',
    'u@r.example/a',
    '[::1/a',
  ];
  for (const text of [...words, ...long, ...hosts, 'r.example/../a', 'r.example/a?b', 'r.example/a%2f']) {
    t.throws(() => parseReference(text), { code: 'USAGE' }, text.slice(0, 40));
  }
});

t.test('property: any accepted reference is safe in a URL', async (t) => {
  const pieces = fc.constantFrom(
    'a',
    'B',
    '0',
    '.',
    '-',
    '_',
    '__',
    '/',
    ':',
    '@',
    'docker://',
    '..',
    '%',
    '?',
    '[',
    ']',
    '::1',
    DIGEST,
    'localhost',
    ' ',
    '\n',
    '\0',
  );
  fc.assert(
    fc.property(
      fc.oneof(
        fc.string(),
        fc.array(pieces, { maxLength: 400 }).map((all) => all.join('')),
      ),
      (text) => {
        try {
          const reference = parseReference(text);
          for (const { host, repository } of endpointsOf(reference)) {
            const url = new URL(`https://${host}/v2/${repository}/manifests/${reference.version}`);
            assert.equal(url.pathname, `/v2/${repository}/manifests/${reference.version}`);
            assert.equal(`${url.username}${url.password}${url.search}${url.hash}`, '');
          }
        } catch (error) {
          assert(error instanceof LazydiskError && error.code === 'USAGE', `${error}`);
        }
      },
    ),
    { numRuns: 3_000 },
  );
  t.pass();
});

t.test('endpoints of a repository are mirrors first, with the right scheme', async (t) => {
  const at = (text: string, options = {}) =>
    endpointsOf(parseReference(text), options).map((one) => `${one.scheme}://${one.host}/${one.repository}`);
  t.same(at('nginx'), ['https://registry-1.docker.io/library/nginx']);
  t.same(at('r.example/a'), ['https://r.example/a']);
  t.same(at('r.example/a', { isPlainHttp: true }), ['http://r.example/a']);
  for (const host of ['localhost', 'localhost:1', '127.0.0.1:5000', '127.1.2.3', '[::1]:5000']) {
    t.same(at(`${host}/a`), [`undefined://${host}/a`], `${host} may use either`);
  }
  t.same(at('127.0.0.1.example/a'), ['https://127.0.0.1.example/a']);
  const mirrors = ['docker.io=m.example', 'r.example=x.example', 'docker.io=http://n.example:80/hub/'];
  t.same(at('nginx', { mirrors }), [
    'https://m.example/library/nginx',
    'http://n.example:80/hub/library/nginx',
    'https://registry-1.docker.io/library/nginx',
  ]);
});
