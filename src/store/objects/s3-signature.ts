/**
 * AWS Signature Version 4 for S3, in headers ("Authenticating Requests (AWS Signature Version 4)" of the S3 API
 * reference). The signing key depends on day and region, and is cached; with it, a signature takes two hashes.
 */
import { createHmac, hash } from 'node:crypto';
import { type HttpTarget, hostOf } from '../../http-client/client.ts';
import type { S3Credentials } from './s3-credentials.ts';

/** A request to sign. */
export interface SignedRequest {
  readonly method: string;
  readonly url: HttpTarget;
  /** Names in lower case; all are signed. */
  readonly headers: Readonly<Record<string, string>>;
  /** SHA-256 of the body, 64 hex digits. */
  readonly sha256: string;
}

export class S3Signer {
  #keyName = '';
  #key: Buffer = Buffer.alloc(0);

  /** The request's headers with `host` and the signature. `nowMs` is the store's time. */
  sign(
    { method, url, headers, sha256 }: SignedRequest,
    { accessKeyId, secretAccessKey, sessionToken }: S3Credentials,
    region: string,
    nowMs: number,
  ): Record<string, string> {
    const time = new Date(nowMs).toISOString().replace(/[-:]|\.\d+/g, '');
    const day = time.slice(0, 8);
    const all: Record<string, string> = {
      ...headers,
      host: hostOf(url),
      'x-amz-content-sha256': sha256,
      'x-amz-date': time,
    };
    if (sessionToken) all['x-amz-security-token'] = sessionToken;
    const names = Object.keys(all).sort();
    const [path, query = ''] = url.path.split('?', 2) as [string, string?];
    let canonical = `${method}\n${path}\n${canonicalQuery(query)}\n`;
    for (const name of names) canonical += `${name}:${all[name]!.trim().replace(/ +/g, ' ')}\n`;
    const signed = names.join(';');
    canonical += `\n${signed}\n${sha256}`;
    const scope = `${day}/${region}/s3/aws4_request`;
    const toSign = `AWS4-HMAC-SHA256\n${time}\n${scope}\n${hash('sha256', canonical, 'hex')}`;
    const key = this.#keyOf(secretAccessKey, day, region);
    const signature = createHmac('sha256', key).update(toSign).digest('hex');
    all.authorization = `AWS4-HMAC-SHA256 Credential=${accessKeyId}/${scope}, SignedHeaders=${signed}, Signature=${signature}`;
    return all;
  }

  #keyOf(secret: string, day: string, region: string): Buffer {
    const name = `${day}/${region}/${secret}`;
    if (name === this.#keyName) return this.#key;
    let key: Buffer = Buffer.from(`AWS4${secret}`);
    for (const part of [day, region, 's3', 'aws4_request'])
      key = createHmac('sha256', key).update(part).digest();
    this.#keyName = name;
    this.#key = key;
    return key;
  }
}

/** The query as S3 sorts and encodes it. */
function canonicalQuery(query: string): string {
  if (query === '') return '';
  const pairs = query.split('&').map((pair) => {
    const at = pair.indexOf('=');
    const [name, value] = at === -1 ? [pair, ''] : [pair.slice(0, at), pair.slice(at + 1)];
    return `${encodePart(decodePart(name))}=${encodePart(decodePart(value))}`;
  });
  return pairs.sort().join('&');
}

/** Encodes a query name or value for S3: all but `A-Z a-z 0-9 - . _ ~`. */
export function encodePart(text: string): string {
  return encodeURIComponent(text).replace(
    /[!'()*]/g,
    (character) => `%${character.charCodeAt(0).toString(16).toUpperCase()}`,
  );
}

function decodePart(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    // Not encoded by us: it comes from a redirect, whose target then rejects it.
    return text;
  }
}
