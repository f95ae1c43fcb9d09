/** Shapes of JSON documents: what they let pass, what they say of the rest, and the list of fields that help shows. */
import fc from 'fast-check';
import t from 'tap';
import {
  boolean,
  checked,
  count,
  each,
  either,
  list,
  matching,
  nullable,
  nullish,
  object,
  oneOf,
  openObject,
  optional,
  record,
  text,
} from '../src/shape.ts';

const shape = object({
  name: text(1, 8),
  sizes: list(count, { min: 1, max: 2 }),
  parts: list(object({ id: matching(/^[0-9a-f]+$/), isOk: boolean })),
  state: oneOf('up', 'down'),
  more: optional(nullable(object({ at: text() }))),
  labels: nullish(record(text(), /^[a-z]+$/)),
});
const good = { name: 'a', sizes: [0], parts: [{ id: 'f0', isOk: true }], state: 'up' };

t.test('a value of the shape passes as it is', async (t) => {
  for (const value of [good, { ...good, more: null, labels: { x: 'y' } }, { ...good, more: { at: '' } }]) {
    t.equal(shape.problem(value, ''), undefined);
    t.equal(checked(shape, value, { code: 'USAGE', name: 'd' }), value);
  }
});

t.test('what is wrong is said with its place', async (t) => {
  const cases: readonly (readonly [unknown, RegExp])[] = [
    [null, /^want an object/],
    [[], /^want an object/],
    [{ ...good, name: '' }, /^name: want text of 1 to 8/],
    [{ ...good, name: 'too long a name' }, /^name: /],
    [{ ...good, sizes: [] }, /^sizes: want a list of 1 to 2/],
    [{ ...good, sizes: [0, 1, 2] }, /^sizes: /],
    [{ ...good, sizes: [0, -1] }, /^sizes\.1: /],
    [{ ...good, sizes: [1.5] }, /^sizes\.0: /],
    [{ ...good, sizes: { 0: 1, length: 1 } }, /^sizes: want a list/],
    [
      {
        ...good,
        parts: [
          { id: 'f0', isOk: true },
          { id: 'x', isOk: true },
        ],
      },
      /^parts\.1\.id: /,
    ],
    [{ ...good, parts: [{ id: 'f0' }] }, /^parts\.0\.isOk: /],
    [{ ...good, state: 'left' }, /^state: want "up" or "down"/],
    [{ ...good, more: { at: 7 } }, /^more\.at: want text/],
    [{ ...good, labels: { X: 'y' } }, /^labels: /],
    [{ ...good, colour: 'red' }, /no field "colour"/],
  ];
  for (const [value, problem] of cases) t.match(shape.problem(value, ''), problem, JSON.stringify(value));
  t.throws(() => checked(shape, {}, { code: 'CORRUPT', name: 'doc' }), {
    code: 'CORRUPT',
    message: /^doc: name: /,
  });
});

t.test('an open object lets others pass, and takes nothing from the prototype', async (t) => {
  t.equal(openObject({ a: text() }).problem({ a: '', b: 1 }, ''), undefined);
  t.match(openObject({ constructor: optional(text()) }).problem({}, '') ?? 'nothing', 'nothing');
  t.match(object({ a: text() }).problem(JSON.parse('{"a":"","__proto__":1}'), ''), /__proto__/);
});

t.test('the fields are named as help shows them', async (t) => {
  t.equal(
    shape.fields,
    ' { name, sizes [], parts [id, isOk], state, more { at } or null, labels { … } or null }',
  );
});

t.test('either of two shapes passes, and help names both', async (t) => {
  const shapes = either(object({ ...each(text(), 'a', 'b') }), list(count));
  for (const value of [{ a: '', b: '' }, [1]]) t.equal(shapes.problem(value, ''), undefined);
  t.match(shapes.problem({ a: '' }, ''), /^b: want text, or want a list/);
  t.match(shapes.problem([-1], ''), /^want an object, or 0: want a whole number/);
  t.equal(shapes.fields, ' { a, b } or []');
});

t.test('no JSON makes a shape throw', async () => {
  fc.assert(
    fc.property(fc.jsonValue(), (value) => {
      shape.problem(value, '');
      shape.problem({ ...good, parts: value, labels: value, more: value }, '');
    }),
  );
});
