/** The XML documents of S3's API that a store needs: a list page, a multi-object delete, the result of a copy. */
import { childOf, childrenOf, parseXml, textOf, type XmlElement, XmlError } from './xml.ts';

export interface S3ListPage {
  readonly objects: readonly {
    readonly key: string;
    readonly sizeBytes: number;
    readonly modifiedMs: number;
  }[];
  /** The common prefixes of folders, if folders were asked for. */
  readonly prefixes: readonly string[];
  readonly isTruncated: boolean;
  /** Where the next page begins. */
  readonly token: string | undefined;
}

/** An object that could not be deleted. */
export interface S3Undeleted {
  readonly key: string;
  readonly code: string;
}

/** Parses the response to ListObjectsV2. Throws XmlError. */
export function parseListPage(body: Buffer): S3ListPage {
  const root = rootOf(body, 'ListBucketResult');
  return {
    objects: childrenOf(root, 'Contents').map(objectOf),
    prefixes: childrenOf(root, 'CommonPrefixes').map((element) => needed(element, 'Prefix')),
    isTruncated: textOf(root, 'IsTruncated') === 'true',
    token: textOf(root, 'NextContinuationToken') || undefined,
  };
}

/** The body of a DeleteObjects request; no character of a key needs escaping in XML. */
export function deletionOf(keys: readonly string[]): Buffer {
  const objects = keys.map((key) => `<Object><Key>${key}</Key></Object>`).join('');
  return Buffer.from(
    `<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Quiet>true</Quiet>${objects}</Delete>`,
  );
}

/** Parses the response to DeleteObjects. Throws XmlError. */
export function parseUndeleted(body: Buffer): S3Undeleted[] {
  return childrenOf(rootOf(body, 'DeleteResult'), 'Error').map((element) => ({
    key: needed(element, 'Key'),
    code: textOf(element, 'Code') ?? '',
  }));
}

/** Whether the response to a CopyObject confirms the copy. Throws XmlError. */
export function isCopied(body: Buffer): boolean {
  const root = parseXml(body.toString());
  return root.name === 'CopyObjectResult' && childOf(root, 'ETag') !== undefined;
}

function objectOf(element: XmlElement): S3ListPage['objects'][number] {
  const size = needed(element, 'Size');
  const modifiedMs = Date.parse(needed(element, 'LastModified'));
  if (!/^\d{1,15}$/.test(size) || Number.isNaN(modifiedMs)) throw new XmlError('no proper size or date');
  return { key: needed(element, 'Key'), sizeBytes: Number(size), modifiedMs };
}

function rootOf(body: Buffer, name: string): XmlElement {
  const root = parseXml(body.toString());
  if (root.name !== name) throw new XmlError(`<${root.name}> instead of <${name}>`);
  return root;
}

function needed(element: XmlElement, name: string): string {
  const text = textOf(element, name);
  if (text === undefined) throw new XmlError(`<${element.name}> without <${name}>`);
  return text;
}
