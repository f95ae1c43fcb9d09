/**
 * Repeats a request if the response only calls for other credentials, another host, another region or a corrected
 * clock, once or twice each, because these must not surface as errors.
 */
import type { HttpTarget } from '../../http-client/client.ts';
import { isStaleCredentials, S3FailureError } from './s3-errors.ts';
import { redirection } from './s3-place.ts';
import type { S3Identity } from './s3-transport.ts';

const HOPS_MAX = 2;

/**
 * Returns what `request` returns; `request` throws S3FailureError for an error response. `path` is the path in the
 * bucket, with the query. Throws what the last request threw.
 */
export async function following<T>(
  { credentials, clock, place }: S3Identity,
  path: string,
  request: (url: HttpTarget) => Promise<T>,
): Promise<T> {
  let target: HttpTarget | undefined;
  let hops = 0;
  let isRefreshed = false;
  let isSkewed = false;
  for (;;) {
    const { generation } = credentials;
    const { region } = place;
    const to = target ?? place.targetOf(path);
    try {
      return await request(to);
    } catch (error) {
      if (!(error instanceof S3FailureError)) throw error;
      const { failure } = error;
      const next = redirection(failure, to);
      if ((next || place.learn(failure, region)) && hops < HOPS_MAX) {
        hops++;
        target = next;
      } else if (!isSkewed && clock.learn(failure)) isSkewed = true;
      else if (!isRefreshed && isStaleCredentials(failure) && (await credentials.refresh(generation)))
        isRefreshed = true;
      else throw error;
    }
  }
}
