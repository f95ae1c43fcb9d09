/** The URL of a bucket: AWS's hosts by region, or a given endpoint, with the bucket in the host name or the path. */
import { isIP } from 'node:net';
import type { S3Location } from './s3-url.ts';

/**
 * Domains of regions by the start of their names ("AWS service endpoints" in the AWS General Reference); all others are
 * in amazonaws.com.
 */
const SUFFIXES: readonly (readonly [string, string])[] = [
  ['cn-', 'amazonaws.com.cn'],
  ['eusc-', 'amazonaws.eu'],
  ['us-iso-', 'c2s.ic.gov'],
  ['us-isob-', 'sc2s.sgov.gov'],
  ['eu-isoe-', 'cloud.adc-e.uk'],
  ['us-isof-', 'csp.hci.ic.gov'],
];

/**
 * Without a trailing slash. A wildcard certificate covers only one label, so over https a bucket with dots goes in the
 * path.
 */
export function bucketUrl({ bucket, endpoint, pathStyle }: S3Location, region: string): string {
  const suffix = SUFFIXES.find(([start]) => region.startsWith(start))?.[1] ?? 'amazonaws.com';
  const base = new URL(endpoint ?? `https://s3.${region}.${suffix}`);
  const isInPath =
    pathStyle ||
    isIP(base.hostname.replace(/^\[(.*)\]$/, '$1')) !== 0 ||
    (base.protocol === 'https:' && bucket.includes('.'));
  const path = base.pathname.replace(/\/+$/, '');
  if (isInPath) return `${base.origin}${path}/${bucket}`;
  return `${base.protocol}//${bucket}.${base.host}${path}`;
}
