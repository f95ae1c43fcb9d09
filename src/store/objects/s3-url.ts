/**
 * `s3://BUCKET/PREFIX?endpoint=URL&region=NAME&pathStyle=BOOL`: the location of a store. Credentials are never part of
 * it; they come from where every AWS tool looks for them.
 */
import { LazydiskError } from '../../errors.ts';
import { checkKey } from './object-store.ts';

export interface S3Location {
  /** As it was given. */
  readonly url: string;
  readonly bucket: string;
  /** Precedes every key: empty, or ends in a slash. */
  readonly prefix: string;
  /** Undefined for AWS. */
  readonly endpoint: string | undefined;
  readonly region: string;
  /** Whether the bucket is in the path of a request, or in its host name. */
  readonly pathStyle: boolean;
}

type Environment = Readonly<Record<string, string | undefined>>;

const QUERY_NAMES: ReadonlySet<string> = new Set(['endpoint', 'region', 'pathStyle']);
const BUCKET = /^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$/;
const REGION = /^[A-Za-z0-9-]{1,64}$/;
/** Keys follow the prefix, and S3 allows 1024 characters for both. */
const PREFIX_CHARACTERS_MAX = 500;

/** Throws USAGE. The region comes from `env` if the URL does not name it. */
export function parseS3Url(url: string, env: Environment = process.env): S3Location {
  if (!URL.canParse(url) || !url.startsWith('s3://')) throw usage('want s3://BUCKET/PREFIX?endpoint=URL');
  const { username, password, port, hostname: bucket, pathname, searchParams, hash } = new URL(url);
  if (username !== '' || password !== '')
    throw usage(
      'credentials do not belong into it; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile',
    );
  if (port !== '' || hash !== '') throw usage('want s3://BUCKET/PREFIX?endpoint=URL');
  if (!BUCKET.test(bucket) || bucket.includes('..'))
    throw usage(`${JSON.stringify(bucket)} is no bucket's name: 3 to 63 of a-z, 0-9, "-" and "."`);
  // Directory buckets use another dialect, and keep objects in a single zone.
  if (bucket.endsWith('--x-s3')) throw usage('a directory bucket is not supported');
  for (const name of searchParams.keys()) {
    // An unknown name may hold a secret, and so may its value, so neither is quoted.
    if (!QUERY_NAMES.has(name)) throw usage(`unknown parameter; there are ${[...QUERY_NAMES].join(', ')}`);
    if (searchParams.getAll(name).length > 1) throw usage(`${name} is there twice`);
  }
  const endpoint = parseEndpoint(searchParams.get('endpoint'));
  const region = searchParams.get('region') ?? (env.AWS_REGION || env.AWS_DEFAULT_REGION || 'us-east-1');
  if (!REGION.test(region)) throw usage(`${JSON.stringify(region)} is no region`);
  const pathStyle = parsePathStyle(searchParams.get('pathStyle')) ?? endpoint !== undefined;
  return { url, bucket, prefix: parsePrefix(pathname), endpoint, region, pathStyle };
}

function parseEndpoint(text: string | null): string | undefined {
  if (text === null) return undefined;
  const endpoint = URL.canParse(text) ? new URL(text) : undefined;
  if (endpoint && (endpoint.username !== '' || endpoint.password !== ''))
    throw usage('credentials do not belong into the endpoint');
  if (!endpoint || !/^https?:$/.test(endpoint.protocol) || endpoint.search !== '' || endpoint.hash !== '')
    throw usage('endpoint: want https://HOST or http://HOST:PORT');
  return endpoint.href.replace(/\/+$/, '');
}

function parsePathStyle(text: string | null): boolean | undefined {
  if (text === null) return undefined;
  if (text !== 'true' && text !== 'false') throw usage('pathStyle: want true or false');
  return text === 'true';
}

function parsePrefix(path: string): string {
  if (path === '' || path === '/') return '';
  const prefix = path.slice(1).replace(/\/$/, '');
  try {
    checkKey(prefix);
  } catch (cause) {
    throw usage('the prefix is parts of A-Z, a-z, 0-9, ".", "_" and "-", between single slashes', cause);
  }
  // A "%" in the URL is an escape, and would not match the key.
  if (prefix.includes('%')) throw usage('the prefix must do without "%"');
  if (prefix.length > PREFIX_CHARACTERS_MAX)
    throw usage(`the prefix is longer than ${PREFIX_CHARACTERS_MAX}`);
  return `${prefix}/`;
}

function usage(text: string, cause?: unknown): LazydiskError {
  return new LazydiskError('USAGE', `store URL s3://…: ${text}`, cause === undefined ? undefined : { cause });
}
