/** Object stores on the network, with retries. Loaded only when one is opened. */

import type { Patience } from '../../async/patience.ts';
import { HttpObjects } from './http-objects.ts';
import type { ObjectStore } from './object-store.ts';
import { RetryObjects } from './retry-objects.ts';
import { S3Objects } from './s3-objects.ts';
import { parseS3Url } from './s3-url.ts';

/** Throws USAGE for an invalid URL. */
export function openRemote(
  url: string,
  scheme: 's3' | 'http' | 'https',
  patience: Patience | undefined,
): ObjectStore {
  const objects = scheme === 's3' ? new S3Objects(parseS3Url(url)) : new HttpObjects(url);
  return new RetryObjects(objects, { patience });
}
