/** The URLs of buckets, compared with those of the AWS SDK. */
import { S3Client } from '@aws-sdk/client-s3';
import t from 'tap';
import { bucketUrl } from '../../../src/store/objects/s3-endpoint.ts';

t.test('a bucket is where the AWS SDK finds it', async (t) => {
  const sdk = new S3Client({ region: 'us-east-1' });
  t.teardown(() => sdk.destroy());
  const endpoints = [
    undefined,
    'https://s3.example',
    'http://s3.example:8080',
    'https://s3.example/base',
    'http://127.0.0.1:9000',
    'http://[::1]:9000',
  ];
  const regions = [
    'us-east-1',
    'eu-central-1',
    'cn-north-1',
    'us-gov-west-1',
    'us-iso-east-1',
    'eusc-de-east-1',
  ];
  for (const endpoint of endpoints)
    for (const region of regions)
      for (const bucket of ['bucket', 'dotted.bucket'])
        for (const pathStyle of [true, false]) {
          // For this combination the SDK produces an invalid URL.
          if (bucket.includes('.') && /http:.*(?:127|::1)/.test(endpoint ?? '') && !pathStyle) continue;
          const { url } = sdk.config.endpointProvider({
            Bucket: bucket,
            Region: region,
            ForcePathStyle: pathStyle,
            ...(endpoint !== undefined && { Endpoint: endpoint }),
          });
          const location = { url: '', prefix: '', bucket, region, endpoint, pathStyle };
          const what = `${endpoint} ${region} ${bucket} ${pathStyle}`;
          t.equal(bucketUrl(location, region), url.href.replace(/\/$/, ''), what);
        }
});
