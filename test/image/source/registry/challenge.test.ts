/** Authentication challenges of registries, and their Retry-After. */
import assert from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import { afterMs } from '../../../../src/image/source/registry/answer-error.ts';
import { parseChallenges } from '../../../../src/image/source/registry/challenge.ts';

const plain = (header: string) =>
  parseChallenges(header).map(({ scheme, parameters }) => [scheme, Object.fromEntries(parameters)]);

t.test('challenges are parsed as servers write them', async (t) => {
  const cases: [string, unknown][] = [
    [
      'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push"',
      [
        [
          'bearer',
          {
            realm: 'https://auth.docker.io/token',
            service: 'registry.docker.io',
            scope: 'repository:a/b:pull,push',
          },
        ],
      ],
    ],
    ['Basic realm="x"', [['basic', { realm: 'x' }]]],
    ['basic', [['basic', {}]]],
    ['BASIC Realm = "a\\"b" , charset=UTF-8', [['basic', { realm: 'a"b', charset: 'UTF-8' }]]],
    [
      'Negotiate, Basic realm="x", Bearer realm="y", error="z"',
      [
        ['negotiate', {}],
        ['basic', { realm: 'x' }],
        ['bearer', { realm: 'y', error: 'z' }],
      ],
    ],
    [
      'Negotiate abc==, Basic',
      [
        ['negotiate', {}],
        ['basic', {}],
      ],
    ],
    [', ,Basic realm=""', [['basic', { realm: '' }]]],
    ['', []],
    ['"x"', []],
    ['Bearer realm="unclosed', [['bearer', {}]]],
    [`Basic realm="${'x'.repeat(20_000)}"`, []],
  ];
  for (const [header, expected] of cases) t.same(plain(header), expected, header.slice(0, 60));
});

t.test('property: any header is parsed within bounds, and quoted values are restored', async (t) => {
  const pieces = fc.constantFrom(
    'Bearer',
    'Basic',
    ' ',
    ',',
    '=',
    '"',
    '\\',
    'realm',
    'realm="x"',
    'a=b',
    '\t',
    'abc==',
    '\xff',
    '\n',
  );
  const any = fc.oneof(
    fc.string(),
    fc.array(pieces, { maxLength: 3_000 }).map((all) => all.join('')),
  );
  fc.assert(
    fc.property(any, (header) => {
      const challenges = parseChallenges(header);
      assert(challenges.length <= 16);
      for (const { parameters } of challenges) assert(parameters.size <= 32);
    }),
    { numRuns: 2_000 },
  );
  fc.assert(
    fc.property(fc.array(fc.string({ unit: 'binary-ascii' }), { maxLength: 10 }), (values) => {
      const quote = (text: string) => `"${text.replace(/["\\]/g, '\\$&')}"`;
      const header = `Bearer ${values.map((value, at) => `p${at}=${quote(value)}`).join(', ')}`;
      const [challenge] = parseChallenges(header);
      assert.deepEqual([...challenge!.parameters.values()], values);
    }),
  );
  t.pass();
});

t.test('both forms of Retry-After are parsed', async (t) => {
  const nowMs = Date.parse('2026-01-01T00:00:00Z');
  t.equal(afterMs('120', nowMs), 120_000);
  t.equal(afterMs('Thu, 01 Jan 2026 00:01:00 GMT', nowMs), 60_000);
  t.equal(afterMs('Wed, 31 Dec 2025 00:01:00 GMT', nowMs), 0, 'in the past');
  for (const header of [undefined, '', '-1', 'soon', '9'.repeat(20)])
    t.equal(afterMs(header, nowMs), undefined);
});
