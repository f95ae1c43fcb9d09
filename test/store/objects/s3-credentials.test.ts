/**
 * Where credentials for S3 come from, on a real RGW that accepts only valid ones: stand-ins on loopback take the place
 * of a cloud's services. The machine's own metadata service is never contacted.
 */
import { execFile } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import t, { type Test } from 'tap';
import { RetryObjects } from '../../../src/store/objects/retry-objects.ts';
import { S3Objects } from '../../../src/store/objects/s3-objects.ts';
import { parseS3Url } from '../../../src/store/objects/s3-url.ts';
import { serveHttp } from '../../support/http-server.ts';
import { type Key, RGW_TOOLS, Rgw } from '../../support/rgw.ts';
import { skipWithout } from '../../support/tools.ts';

const run = promisify(execFile);
const HOUR_MS = 3_600_000;

if (!skipWithout(t, ...RGW_TOOLS)) await all();

async function all(): Promise<void> {
  const rgw = await Rgw.start();
  t.teardown(() => rgw.close());
  await rgw.createBucket('bucket');
  const url = `s3://bucket/store?endpoint=${rgw.endpoint}`;

  t.test(
    'a key that is taken away under load is replaced by the next one, and no reader notices',
    async (t) => {
      const first = await rgw.addKey();
      const metadata = await startMetadata(t, first);
      setEnvironment(t, { AWS_EC2_METADATA_SERVICE_ENDPOINT: metadata.endpoint });
      const raw = new S3Objects(parseS3Url(url));
      const store = new RetryObjects(raw);
      t.teardown(() => store.close());
      t.equal(raw.credentialExpiry, undefined);
      const bytes = Buffer.alloc(50_000, 'x');
      await store.put('x', bytes);
      await store.get('x', bytes.length);
      t.ok(Math.abs((raw.credentialExpiry ?? 0) - Date.now() - HOUR_MS) < 60_000);

      const before = metadata.given;
      const errors: unknown[] = [];
      let reads = 0;
      let stopped = false;
      const reader = async (n: number): Promise<void> => {
        while (!stopped) {
          try {
            if (n % 4 === 3) await store.head('x');
            else if (n % 4 === 2) await store.put(`w/${n}`, bytes);
            else if (!(await store.get('x', bytes.length))?.bytes.equals(bytes))
              throw new Error('wrong bytes');
            reads++;
          } catch (error) {
            errors.push(error);
          }
        }
      };
      const readers = Array.from({ length: 12 }, (_, n) => reader(n));
      await sleep(500);
      const second = await rgw.addKey();
      metadata.key = second;
      await rgw.revokeKey(first);
      const readsBefore = reads;
      await sleep(1_000);
      stopped = true;
      await Promise.all(readers);
      t.same(errors, []);
      t.ok(reads > readsBefore + 50, `${reads - readsBefore} calls after it`);
      t.ok(metadata.given - before <= 2, 'and one asked for all');
      await rgw.revokeKey(second);
      const error = (await raw.get('x', 1).catch((error) => error)) as Error;
      t.match(error, { code: 'UNAVAILABLE', message: /credentials were refused|access denied/ });
      t.notMatch(error.message, new RegExp(second.accessKeyId));
    },
  );

  t.test('credentials that are about to end are renewed before', async (t) => {
    const metadata = await startMetadata(t, rgw.key);
    metadata.lifeMs = 60_000;
    setEnvironment(t, { AWS_EC2_METADATA_SERVICE_ENDPOINT: metadata.endpoint });
    const store = new S3Objects(parseS3Url(url));
    t.teardown(() => store.close());
    await store.get('x', 1);
    const early = store.credentialExpiry ?? 0;
    metadata.lifeMs = HOUR_MS;
    for (let tries = 0; tries < 50 && (store.credentialExpiry ?? 0) <= early + 60_000; tries++) {
      await store.get('x', 1);
      await sleep(20);
    }
    t.ok((store.credentialExpiry ?? 0) > early + 60_000);
  });

  t.test('a profile', async (t) => {
    const file = join(t.testdir(), 'credentials');
    writeFileSync(
      file,
      `[team]\naws_access_key_id = ${rgw.key.accessKeyId}\naws_secret_access_key = ${rgw.key.secretAccessKey}\n`,
    );
    t.equal(await readAsChild({ AWS_SHARED_CREDENTIALS_FILE: file, AWS_PROFILE: 'team' }), 'profile');
  });

  t.test('a web identity', async (t) => {
    const file = join(t.testdir(), 'token');
    writeFileSync(file, 'the-token-of-this-pod');
    const asked: string[] = [];
    const sts = await serveHttp(t, async (request, response) => {
      asked.push(String(Buffer.concat((await Array.fromAsync(request)) as Buffer[])));
      response.setHeader('content-type', 'text/xml');
      response.end(`<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
        <AssumeRoleWithWebIdentityResult><Credentials>
          <AccessKeyId>${rgw.key.accessKeyId}</AccessKeyId><SecretAccessKey>${rgw.key.secretAccessKey}</SecretAccessKey>
          <SessionToken></SessionToken><Expiration>${new Date(Date.now() + HOUR_MS).toISOString()}</Expiration>
        </Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`);
    });
    const env = {
      AWS_WEB_IDENTITY_TOKEN_FILE: file,
      AWS_ROLE_ARN: 'arn:aws:iam::123456789012:role/reader',
      AWS_ENDPOINT_URL_STS: sts,
    };
    t.equal(await readAsChild(env), 'expires');
    t.equal(asked.length, 1);
    t.match(asked[0], /WebIdentityToken=the-token-of-this-pod/);
  });

  t.test('none at all is said so', async (t) => {
    setEnvironment(t, { AWS_EC2_METADATA_DISABLED: 'true' });
    const store = new S3Objects(parseS3Url(url));
    t.teardown(() => store.close());
    await t.rejects(store.get('x', 1), { code: 'UNAVAILABLE', message: /no credentials/ });
    await t.rejects(store.put('x', Buffer.alloc(1)), { code: 'UNAVAILABLE', message: /credentials/ });
  });

  /** Writes and reads in a process that has only the credentials in `env`; returns whether they expire. */
  async function readAsChild(env: Record<string, string>): Promise<string> {
    const script = `
      const { S3Objects } = await import(${JSON.stringify(import.meta.resolve('../../../src/store/objects/s3-objects.ts'))});
      const { parseS3Url } = await import(${JSON.stringify(import.meta.resolve('../../../src/store/objects/s3-url.ts'))});
      const store = new S3Objects(parseS3Url(${JSON.stringify(url)}));
      await store.put('child', Buffer.from('x'));
      const read = await store.get('child', 1);
      await store.close();
      console.log(read && (store.credentialExpiry ? 'expires' : 'profile'));`;
    const { stdout } = await run(process.execPath, ['--input-type=module', '-e', script], {
      env: { PATH: process.env.PATH, HOME: '/nonexistent', AWS_EC2_METADATA_DISABLED: 'true', ...env },
      timeout: 30_000,
    });
    return stdout.trim();
  }
}

/** A stand-in for EC2's service at 169.254.169.254, for one role with one key at a time. */
async function startMetadata(t: Test, key: Key) {
  const metadata = { key, lifeMs: HOUR_MS, given: 0, endpoint: '' };
  const roles = '/latest/meta-data/iam/security-credentials/';
  metadata.endpoint = await serveHttp(t, (request, response) => {
    request.resume();
    if (request.url === '/latest/api/token') {
      response.setHeader('x-aws-ec2-metadata-token-ttl-seconds', '21600');
      response.end('a-token');
    } else if (request.url === roles) response.end('worker');
    else if (request.url === `${roles}worker`) {
      metadata.given++;
      const { accessKeyId: AccessKeyId, secretAccessKey: SecretAccessKey } = metadata.key;
      const Expiration = new Date(Date.now() + metadata.lifeMs).toISOString();
      response.end(JSON.stringify({ Code: 'Success', AccessKeyId, SecretAccessKey, Token: '', Expiration }));
    } else response.writeHead(404).end();
  });
  return metadata;
}

/** Replaces the credentials in this process's environment with `env` until the test ends. */
function setEnvironment(t: Test, env: Record<string, string>): void {
  const before = { ...process.env };
  for (const name of Object.keys(process.env)) if (name.startsWith('AWS_')) delete process.env[name];
  Object.assign(process.env, {
    AWS_SHARED_CREDENTIALS_FILE: '/nonexistent',
    AWS_CONFIG_FILE: '/nonexistent',
    ...env,
  });
  t.teardown(() => {
    for (const name of Object.keys(process.env)) if (name.startsWith('AWS_')) delete process.env[name];
    for (const [name, value] of Object.entries(before))
      if (name.startsWith('AWS_')) process.env[name] = value;
  });
}
