/** Where a bucket is: AWS's hosts by region, or an endpoint that was given, with the bucket in the host name or the path. */
import { isIP } from 'node:net';
import type { S3Location } from './s3-url.ts';

/** Of the regions whose names begin so ("AWS service endpoints" in the AWS General Reference); others are in amazonaws.com. */
const SUFFIXES: readonly (readonly [string, string])[] = [
  ['cn-', 'amazonaws.com.cn'],
  ['eusc-', 'amazonaws.eu'],
  ['us-iso-', 'c2s.ic.gov'],
  ['us-isob-', 'sc2s.sgov.gov'],
  ['eu-isoe-', 'cloud.adc-e.uk'],
  ['us-isof-', 'csp.hci.ic.gov'],
];

/** Without a slash at its end. A certificate covers one name before the endpoint's, so a bucket with dots goes in the path. */
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
