/** Locates a bucket: its region, which the store corrects if the URL is wrong, and the resulting host. */
import { type HttpTarget, hostOf, targetOf } from '../../http-client/client.ts';
import { bucketUrl } from './s3-endpoint.ts';
import type { S3Failure } from './s3-errors.ts';
import { encodePart } from './s3-signature.ts';
import type { S3Location } from './s3-url.ts';

export class S3Place {
  readonly #location: S3Location;
  #region: string;
  /** The bucket's target in its region. */
  #bucket: { readonly region: string; readonly target: HttpTarget } | undefined;

  constructor(location: S3Location) {
    this.#location = location;
    this.#region = location.region;
  }

  get region(): string {
    return this.#region;
  }

  /** `path` is the path in the bucket, with the query. */
  targetOf(path: string): HttpTarget {
    const region = this.#region;
    if (this.#bucket?.region !== region)
      this.#bucket = { region, target: targetOf(new URL(bucketUrl(this.#location, region))) };
    const { target } = this.#bucket;
    return { ...target, path: `${target.path.replace(/\/$/, '')}${path}` };
  }

  /** Returns whether the bucket is in another region than `used`, the request's region, and switches to it. */
  learn({ status, region }: S3Failure, used: string): boolean {
    if (region === undefined || (status !== 301 && status !== 307 && status !== 400) || region === used)
      return false;
    this.#region = region;
    return true;
  }
}

/** The path of `key` in a bucket; an empty key is the bucket itself. */
export function pathOf(key: string, query?: Readonly<Record<string, string>>): string {
  // No other character of a key is special in a URL.
  const path = `/${key.replaceAll('%', '%25')}`;
  if (!query) return path;
  const pairs = Object.entries(query).map(([name, value]) => `${name}=${encodePart(value)}`);
  return `${path}?${pairs.join('&')}`;
}

/** The target that a response redirects to; never from https to http. */
export function redirection({ status, location }: S3Failure, from: HttpTarget): HttpTarget | undefined {
  if (![301, 302, 307, 308].includes(status) || location === undefined) return undefined;
  const base = `${from.protocol}//${hostOf(from)}${from.path}`;
  const next = URL.canParse(location, base) ? new URL(location, base) : undefined;
  if (!next || !/^https?:$/.test(next.protocol)) return undefined;
  return from.protocol === 'https:' && next.protocol === 'http:' ? undefined : targetOf(next);
}
