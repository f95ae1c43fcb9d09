/**
 * AWS's Signature Version 4, checked as a server checks it: written from AWS's documentation ("Create a signed AWS API
 * request") with node:crypto alone, so that it shares no code and no mistake with the SDK that signs.
 */
import { createHash, createHmac, timingSafeEqual } from 'node:crypto';

export interface SignedRequest {
  readonly method: string;
  /** Path and query as received. */
  readonly url: string;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly body: Buffer;
}

export interface Signer {
  readonly accessKeyId: string;
  readonly region: string;
  readonly service: string;
}

/** A request may be this much older or newer than the server's clock. */
const SKEW_MS_MAX = 5 * 60_000;

const AUTHORIZATION =
  /^AWS4-HMAC-SHA256 Credential=([^/\s]+)\/(\d{8})\/([a-z0-9-]+)\/([a-z0-9-]+)\/aws4_request, ?SignedHeaders=([a-z0-9;-]+), ?Signature=([0-9a-f]{64})$/;

/** Returns who signed `request`. Throws an Error that names the first problem. */
export function verifySignature(
  request: SignedRequest,
  secretOf: (accessKeyId: string) => string | undefined,
  nowMs = Date.now(),
): Signer {
  const { method, url, headers, body } = request;
  const match = AUTHORIZATION.exec(String(headers.authorization ?? ''));
  if (!match) throw new Error('MissingAuthenticationTokenException: no valid Authorization header');
  const [, accessKeyId, date, region, service, signedText, signature] = match as unknown as string[];
  const secret = secretOf(accessKeyId!);
  if (secret === undefined)
    throw new Error('UnrecognizedClientException: The security token included in the request is invalid.');

  const time = String(headers['x-amz-date'] ?? '');
  const parts = /^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z$/.exec(time);
  if (!parts || !time.startsWith(date!)) throw new Error('InvalidSignatureException: no valid x-amz-date');
  const [, year, month, day, hour, minute, second] = parts;
  const sentMs = Date.parse(`${year}-${month}-${day}T${hour}:${minute}:${second}Z`);
  if (Math.abs(nowMs - sentMs) > SKEW_MS_MAX)
    throw new Error('InvalidSignatureException: Signature expired or not yet current');

  const signed = signedText!.split(';');
  if (signed.join() !== [...signed].sort().join())
    throw new Error('InvalidSignatureException: headers out of order');
  const must = ['host', ...Object.keys(headers).filter((name) => name.startsWith('x-amz-'))];
  for (const name of must)
    if (!signed.includes(name)) throw new Error(`InvalidSignatureException: ${name} is not signed`);
  const payloadHash = sha256(body);
  const claimed = headers['x-amz-content-sha256'];
  if (claimed !== undefined && claimed !== payloadHash)
    throw new Error('InvalidSignatureException: the body is not what x-amz-content-sha256 says');

  const [path, query = ''] = url.split('?') as [string, string?];
  const canonical = [
    method,
    canonicalPath(path, service!),
    canonicalQuery(query),
    ...signed.map((name) => `${name}:${headerText(headers[name])}`),
    '',
    signedText,
    payloadHash,
  ].join('\n');
  const scope = `${date}/${region}/${service}/aws4_request`;
  const toSign = ['AWS4-HMAC-SHA256', time, scope, sha256(canonical)].join('\n');
  let key = hmac(`AWS4${secret}`, date!);
  for (const step of [region!, service!, 'aws4_request']) key = hmac(key, step);
  if (!timingSafeEqual(hmac(key, toSign), Buffer.from(signature!, 'hex')))
    throw new Error(
      'InvalidSignatureException: The request signature we calculated does not match the signature you provided.',
    );
  return { accessKeyId: accessKeyId!, region: region!, service: service! };
}

/** Every service except S3 encodes the already encoded path once more. */
function canonicalPath(path: string, service: string): string {
  return service === 's3' ? path : path.split('/').map(encode).join('/');
}

function canonicalQuery(query: string): string {
  if (query === '') return '';
  return query
    .split('&')
    .map((pair) => {
      const [name, value = ''] = pair.split('=') as [string, string?];
      return `${encode(decodeURIComponent(name))}=${encode(decodeURIComponent(value))}`;
    })
    .sort()
    .join('&');
}

function encode(text: string): string {
  return encodeURIComponent(text).replace(
    /[!'()*]/g,
    (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`,
  );
}

function headerText(value: string | string[] | undefined): string {
  return [value ?? []].flat().join(',').trim().replace(/ +/g, ' ');
}

function sha256(data: Buffer | string): string {
  return createHash('sha256').update(data).digest('hex');
}

function hmac(key: Buffer | string, text: string): Buffer {
  return createHmac('sha256', key).update(text).digest();
}
