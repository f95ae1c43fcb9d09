/** URLs of S3 stores. */
import t from 'tap';
import { parseS3Url } from '../../../src/store/objects/s3-url.ts';

t.test('a bucket alone is enough', (t) => {
  t.same(parseS3Url('s3://my-bucket', {}), {
    url: 's3://my-bucket',
    bucket: 'my-bucket',
    prefix: '',
    endpoint: undefined,
    region: 'us-east-1',
    pathStyle: false,
  });
  t.end();
});

t.test('an endpoint means the bucket in the path, unless said otherwise', (t) => {
  const url = 's3://b.1/team/store/?endpoint=http://127.0.0.1:9000/&region=garage';
  t.match(parseS3Url(url, { AWS_REGION: 'eu-west-1' }), {
    url,
    bucket: 'b.1',
    prefix: 'team/store/',
    endpoint: 'http://127.0.0.1:9000',
    region: 'garage',
    pathStyle: true,
  });
  t.equal(parseS3Url(`${url}&pathStyle=false`, {}).pathStyle, false);
  t.equal(parseS3Url('s3://bucket?pathStyle=true', {}).pathStyle, true);
  t.equal(parseS3Url('s3://bucket?endpoint=https%3A%2F%2Fminio%2Fs3', {}).endpoint, 'https://minio/s3');
  t.end();
});

t.test('the region is looked for where every AWS tool looks for it', (t) => {
  t.equal(parseS3Url('s3://bucket', { AWS_REGION: 'a-1', AWS_DEFAULT_REGION: 'b-1' }).region, 'a-1');
  t.equal(parseS3Url('s3://bucket', { AWS_REGION: '', AWS_DEFAULT_REGION: 'b-1' }).region, 'b-1');
  t.end();
});

t.test('anything else is USAGE, and repeats no secret', (t) => {
  const bad = [
    '', 's3:', 's3://', 's3:///x', 'http://bucket', 's3://b', 's3://Bucket', 's3://b_b', 's3://a..b', 's3://-bb', 's3://bb.',
    `s3://${'b'.repeat(64)}`, 's3://bucket:80/x', 's3://bucket/a//b', 's3://bucket/a b', 's3://bucket/a%20b', 's3://bucket/a#b',
    's3://bucket//', `s3://bucket/${'p'.repeat(501)}`, 's3://bucket?prefix=x', 's3://bucket?region=a&region=b', 's3://bucket?region=a%20b',
    's3://bucket?endpoint=', 's3://bucket?endpoint=minio:9000', 's3://bucket?endpoint=ftp://x', 's3://bucket?endpoint=http://x/?y',
    's3://bucket?pathStyle=1', 's3://AKIA:hunter2@bucket/x', 's3://hunter2@bucket', 's3://bucket?secretKey=hunter2', 's3://bucket?hunter2=1',
    's3://bucket?endpoint=http://AKIA:hunter2@host', 's3://AKIA:hun/ter2@bucket', 's3://bucket--use1-az4--x-s3',
  ]; // biome-ignore format: a list of words
  for (const url of bad) {
    try {
      parseS3Url(url, {});
      t.fail(`taken: ${url}`);
    } catch (error) {
      t.match(error, { code: 'USAGE' }, url);
      t.notMatch((error as Error).message, /hunter2|ter2|AKIA/);
    }
  }
  t.end();
});
