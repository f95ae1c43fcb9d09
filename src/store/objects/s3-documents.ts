/** The XML documents of S3's API that a store needs: a page of a list, a deletion of many, what came of a copy. */
import { childOf, childrenOf, parseXml, textOf, type XmlElement, XmlError } from './xml.ts';

export interface S3ListPage {
  readonly objects: readonly {
    readonly key: string;
    readonly sizeBytes: number;
    readonly modifiedMs: number;
  }[];
  /** What keys of folders begin with, if folders were asked for. */
  readonly prefixes: readonly string[];
  readonly isTruncated: boolean;
  /** Where the next page begins. */
  readonly token: string | undefined;
}

/** An object that was to be deleted and stays. */
export interface S3Undeleted {
  readonly key: string;
  readonly code: string;
}

/** Of ListObjectsV2. Throws XmlError. */
export function parseListPage(body: Buffer): S3ListPage {
  const root = rootOf(body, 'ListBucketResult');
  return {
    objects: childrenOf(root, 'Contents').map(objectOf),
    prefixes: childrenOf(root, 'CommonPrefixes').map((element) => needed(element, 'Prefix')),
    isTruncated: textOf(root, 'IsTruncated') === 'true',
    token: textOf(root, 'NextContinuationToken') || undefined,
  };
}

/** The body of a DeleteObjects; no character of a key means something in XML. */
export function deletionOf(keys: readonly string[]): Buffer {
  const objects = keys.map((key) => `<Object><Key>${key}</Key></Object>`).join('');
  return Buffer.from(
    `<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Quiet>true</Quiet>${objects}</Delete>`,
  );
}

/** Of DeleteObjects. Throws XmlError. */
export function parseUndeleted(body: Buffer): S3Undeleted[] {
  return childrenOf(rootOf(body, 'DeleteResult'), 'Error').map((element) => ({
    key: needed(element, 'Key'),
    code: textOf(element, 'Code') ?? '',
  }));
}

/** Whether the answer to a CopyObject says that it was done. Throws XmlError. */
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
