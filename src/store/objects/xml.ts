/**
 * Parses the small XML documents of S3's responses: elements and text. Attributes and comments are ignored; document
 * types, which make XML dangerous, are rejected.
 */

/** Maximum nesting of elements. S3's responses are four deep. */
const DEPTH_MAX = 16;

export interface XmlElement {
  /** Without the namespace prefix. */
  readonly name: string;
  /** Only of an element without children. */
  readonly text: string;
  readonly children: readonly XmlElement[];
}

/** The document is not XML, or not XML that S3 sends. */
export class XmlError extends Error {}

const TOKEN =
  /<\?[^>]*\?>|<!--[\s\S]*?-->|<(\/?)(?:[A-Za-z_][\w.-]*:)?([A-Za-z_][\w.-]*)((?:\s+[\w.:-]+\s*=\s*(?:"[^"<]*"|'[^'<]*'))*)\s*(\/?)>|[^<]+/y;

const ENTITIES: ReadonlyMap<string, string> = new Map([
  ['amp;', '&'],
  ['lt;', '<'],
  ['gt;', '>'],
  ['quot;', '"'],
  ['apos;', "'"],
]);

/** Returns the root of a document. Throws XmlError. */
export function parseXml(document: string): XmlElement {
  const top = { name: '', text: '', children: [] as XmlElement[] };
  const open: (typeof top)[] = [top];
  TOKEN.lastIndex = 0;
  for (let at = 0; at < document.length; at = TOKEN.lastIndex) {
    const match = TOKEN.exec(document);
    if (!match) throw new XmlError(`malformed at character ${at}`);
    const [token, closing, name, , empty] = match;
    const inner = open.at(-1)!;
    if (name === undefined) {
      if (!token.startsWith('<')) inner.text += token;
    } else if (closing) {
      if (inner.name !== name) throw new XmlError(`</${name}> in <${inner.name}>`);
      inner.text = decoded(inner.text);
      open.pop();
    } else {
      if (open.length > DEPTH_MAX) throw new XmlError(`over ${DEPTH_MAX} elements deep`);
      const element = { name, text: '', children: [] };
      inner.children.push(element);
      if (!empty) open.push(element);
    }
  }
  const [root, ...others] = top.children;
  if (open.length > 1 || !root || others.length > 0 || top.text.trim() !== '')
    throw new XmlError('not one whole document');
  return root;
}

/** The first child of that name. */
export function childOf({ children }: XmlElement, name: string): XmlElement | undefined {
  return children.find((child) => child.name === name);
}

export function childrenOf({ children }: XmlElement, name: string): XmlElement[] {
  return children.filter((child) => child.name === name);
}

/** The text of the first child of that name. */
export function textOf(element: XmlElement, name: string): string | undefined {
  return childOf(element, name)?.text;
}

function decoded(text: string): string {
  if (!text.includes('&')) return text;
  return text.replace(/&([^;&]{0,10};?)/g, (_, entity: string) => {
    const named = ENTITIES.get(entity);
    if (named !== undefined) return named;
    const match = /^#(?:(\d{1,7})|x([0-9A-Fa-f]{1,6}));$/.exec(entity);
    const code = match ? Number.parseInt(match[1] ?? match[2]!, match[1] ? 10 : 16) : 0;
    if (code === 0 || code > 0x10ffff) throw new XmlError('an unknown entity');
    return String.fromCodePoint(code);
  });
}
