/** The XML of S3's responses. */
import fc from 'fast-check';
import t from 'tap';
import { childrenOf, parseXml, textOf, type XmlElement, XmlError } from '../../../src/store/objects/xml.ts';

const name = fc.stringMatching(/^[A-Za-z_][A-Za-z0-9_.-]{0,8}$/);
const text = fc.string({
  unit: fc.constantFrom('a', '&', '<', '>', '"', "'", ' ', 'ü', '\n', ']', '😀'),
  maxLength: 12,
});

const element = fc.letrec<{ element: XmlElement }>((tie) => ({
  element: fc.oneof(
    { depthSize: 'small', withCrossShrink: true },
    fc.record({ name, text, children: fc.constant([]) }),
    fc.record({
      name,
      text: fc.constant(''),
      children: fc.array(tie('element'), { minLength: 1, maxLength: 4 }),
    }),
  ),
})).element;

function escaped(text: string): string {
  const replaced = text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
  return replaced.replaceAll('"', '&#34;').replaceAll('ü', '&#xFC;');
}

function serialized({ name, text, children }: XmlElement): string {
  if (text === '' && children.length === 0) return `<${name} a="b" c:d = 'e>'/>`;
  return `<s3:${name}>${escaped(text)}${children.map(serialized).join('<!-- > -->')}</s3:${name} >`;
}

t.test('a document is read as it was written', async () => {
  const depth = (at: XmlElement): number => 1 + Math.max(0, ...at.children.map(depth));
  fc.assert(
    fc.property(element, (root) => {
      fc.pre(depth(root) <= 16);
      const read = parseXml(`<?xml version="1.0" encoding="UTF-8"?>\n${serialized(root)}\n`);
      return JSON.stringify(read) === JSON.stringify(root);
    }),
    { numRuns: 1000 },
  );
});

t.test('children are found by name', async (t) => {
  const root = parseXml('<a><b>1</b><c>2</c><b>3</b></a>');
  t.equal(textOf(root, 'c'), '2');
  t.equal(textOf(root, 'd'), undefined);
  t.same(
    childrenOf(root, 'b').map(({ text }) => text),
    ['1', '3'],
  );
});

t.test('what is not a whole document of elements and text is refused', async (t) => {
  const bad = [
    ...['', 'text', '<a>', '</a>', '<a></b>', '<a><b></a></b>', '<a/><b/>', '<a/>text', '<a', '<a b></a>'],
    ...['<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', '<a>&unknown;</a>', '<a>&amp</a>', '<a>&#0;</a>'],
    ...[
      '<a>&#x110000;</a>',
      '<a>&constructor;</a>',
      '<a>&toString;</a>',
      '<a><![CDATA[b]]></a>',
      '<a><!-- </a>',
    ],
    '<a>'.repeat(17) + '</a>'.repeat(17),
  ];
  for (const document of bad) {
    const error = await Promise.resolve()
      .then(() => parseXml(document))
      .catch((error) => error);
    t.ok(error instanceof XmlError, document);
  }
});

t.test('whatever it is given, it reads it in time or refuses it', async (t) => {
  const characters = fc.constantFrom(
    '<',
    '>',
    '/',
    'a',
    ' ',
    '"',
    '=',
    '&',
    ';',
    '!',
    '-',
    '?',
    '#',
    'x',
    ':',
  );
  const noise = fc.string({ unit: characters, maxLength: 60 });
  const spoiled = fc.tuple(element.map(serialized), fc.nat(), characters).map(([document, n, put]) => {
    const at = n % document.length;
    return document.slice(0, at) + put + document.slice(at + (n % 2));
  });
  fc.assert(
    fc.property(fc.oneof(noise, spoiled), (document) => {
      try {
        parseXml(document);
      } catch (error) {
        return error instanceof XmlError;
      }
      return true;
    }),
    { numRuns: 5000 },
  );
  const long = 200_000;
  const slow = [
    '<a'.repeat(long),
    `<a${' '.repeat(long)}`,
    `<a ${'b="" '.repeat(long)}`,
    '<!--'.repeat(long),
  ];
  for (const document of [...slow, `<a>${'&'.repeat(long)}</a>`, '<?'.repeat(long)])
    t.throws(() => parseXml(document));
});
