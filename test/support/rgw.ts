/**
 * A real S3 server for tests: Ceph's RGW over one monitor and one OSD that keeps everything in memory, started in about
 * three seconds, in one temporary folder and on loopback, as the user who runs the tests.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { randomBytes, randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { closeSync, openSync } from 'node:fs';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { CreateBucketCommand, PutBucketPolicyCommand, PutObjectCommand, S3Client } from '@aws-sdk/client-s3';
import { freePort } from './memcached.ts';

export const RGW_TOOLS = ['ceph-mon', 'ceph-osd', 'radosgw', 'radosgw-admin', 'ceph', 'monmaptool'];

const READY_MS_MAX = 90_000;
/** A stopped cluster need not write anything. */
const TERM_MS = 500;

const run = promisify(execFile);

export interface Key {
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
}

export class Rgw {
  /** `http://127.0.0.1:PORT`; buckets are in the path, or before `localhost` in the host name. */
  readonly endpoint: string;
  readonly port: number;
  /** Credentials of the user that owns the buckets. */
  readonly key: Key;
  readonly #dir: string;
  readonly #children: ChildProcess[] = [];

  private constructor(dir: string, port: number) {
    this.#dir = dir;
    this.port = port;
    this.endpoint = `http://127.0.0.1:${port}`;
    this.key = newKey();
  }

  /** Starts the cluster and waits until it responds. */
  static async start(): Promise<Rgw> {
    const rgw = new Rgw(await mkdtemp(join(tmpdir(), 'lazydisk-rgw-')), await freePort());
    try {
      await rgw.#start();
    } catch (error) {
      const logs = await Promise.all(
        ['mon', 'osd', 'rgw'].map((name) => readFile(join(rgw.#dir, `${name}.out`), 'utf8').catch(() => '')),
      );
      await rgw.close();
      throw new Error(`RGW does not start: ${logs.join('').slice(-2000)}`, { cause: error });
    }
    return rgw;
  }

  async createBucket(name: string): Promise<void> {
    const client = this.client();
    await client.send(new CreateBucketCommand({ Bucket: name }));
    client.destroy();
  }

  /** Puts an object that lazydisk did not write. */
  async put(bucket: string, key: string, text: string): Promise<void> {
    const client = this.client();
    await client.send(
      new PutObjectCommand({ Bucket: bucket, Key: key, Body: Buffer.from(text), ContentLength: text.length }),
    );
    client.destroy();
  }

  /**
   * Grants a stranger in `bucket` what systemd/README.md says that daemons need for the store under `prefix`, and
   * nothing else. The stranger owns the objects that it puts: the bucket's owner may delete them, but not read them.
   */
  async allowDaemon(bucket: string, prefix: string, { accessKeyId }: Key): Promise<void> {
    const statement = (action: string, resource: string) => ({
      Effect: 'Allow',
      Principal: { AWS: [`arn:aws:iam:::user/${strangerOf(accessKeyId)}`] },
      Action: [action],
      Resource: [`arn:aws:s3:::${resource}`],
    });
    const Policy = JSON.stringify({
      Version: '2012-10-17',
      Statement: [
        statement('s3:ListBucket', bucket),
        statement('s3:GetObject', `${bucket}/${prefix}/*`),
        statement('s3:PutObject', `${bucket}/${prefix}/hosts/*`),
      ],
    });
    const client = this.client();
    await client.send(new PutBucketPolicyCommand({ Bucket: bucket, Policy }));
    client.destroy();
  }

  /** Makes stores in this process and its children use `key`, and keeps them from querying the cloud. */
  useInThisProcess(key = this.key): void {
    process.env.AWS_ACCESS_KEY_ID = key.accessKeyId;
    process.env.AWS_SECRET_ACCESS_KEY = key.secretAccessKey;
    process.env.AWS_EC2_METADATA_DISABLED = 'true';
  }

  /** A plain client of the owner, for changes behind the store's back. */
  client(key = this.key): S3Client {
    return new S3Client({
      endpoint: this.endpoint,
      region: 'us-east-1',
      forcePathStyle: true,
      credentials: { ...key },
      requestChecksumCalculation: 'WHEN_REQUIRED',
      responseChecksumValidation: 'WHEN_REQUIRED',
    });
  }

  /** Creates another access key for the owner. */
  async addKey(): Promise<Key> {
    const key = newKey();
    const words = ['--access-key', key.accessKeyId, '--secret-key', key.secretAccessKey];
    await this.#admin('key', 'create', '--uid', 'owner', '--key-type', 's3', ...words);
    return key;
  }

  async revokeKey({ accessKeyId }: Key): Promise<void> {
    await this.#admin('key', 'rm', '--uid', 'owner', '--key-type', 's3', '--access-key', accessKeyId);
  }

  /** Creates a user without permissions on the owner's buckets. */
  async addStranger(): Promise<Key> {
    const key = newKey();
    await this.#addUser(strangerOf(key.accessKeyId), key);
    return key;
  }

  /** Stops the processes and removes the folder. */
  async close(): Promise<void> {
    await Promise.all(this.#children.reverse().map(stop));
    await rm(this.#dir, { recursive: true, force: true });
  }

  async #start(): Promise<void> {
    const [fsid, osd, monPort] = [randomUUID(), randomUUID(), await freePort()];
    await Promise.all(['mon', 'osd'].map((name) => mkdir(join(this.#dir, name))));
    await writeFile(this.#conf, confOf(this.#dir, fsid, monPort, this.port));
    const monmap = join(this.#dir, 'monmap');
    const monAddress = `[v2:127.0.0.1:${monPort}]`;
    await this.#run('monmaptool', '--create', '--fsid', fsid, '--addv', 'a', monAddress, monmap);
    await this.#run('ceph-mon', '-i', 'a', '--mkfs', '--monmap', monmap);
    this.#spawn('mon', 'ceph-mon', '-i', 'a', '-f');
    await this.#run('ceph', '--connect-timeout', '60', 'osd', 'new', osd, '0');
    await this.#run('ceph-osd', '-i', '0', '--mkfs', '--osd-uuid', osd);
    this.#spawn('osd', 'ceph-osd', '-i', '0', '-f');
    this.#spawn('rgw', 'radosgw', '-n', 'client.admin', '-f');
    const deadline = performance.now() + READY_MS_MAX;
    while (!(await fetch(this.endpoint).catch(() => undefined))) {
      if (this.#children.some((child) => child.exitCode !== null))
        throw new Error('one of its processes has exited');
      if (performance.now() > deadline) throw new Error('no response');
      await sleep(50);
    }
    await this.#addUser('owner', this.key);
  }

  get #conf(): string {
    return join(this.#dir, 'ceph.conf');
  }

  #spawn(name: string, program: string, ...words: string[]): void {
    const output = openSync(join(this.#dir, `${name}.out`), 'a');
    // They are killed with the tests, however those exit.
    const command = ['--pdeathsig', 'KILL', program, '-c', this.#conf, ...words];
    this.#children.push(spawn('setpriv', command, { stdio: ['ignore', output, output] }));
    closeSync(output);
  }

  async #run(program: string, ...words: string[]): Promise<void> {
    const conf = program === 'monmaptool' ? [] : ['-c', this.#conf];
    await run(program, [...conf, ...words], { timeout: READY_MS_MAX });
  }

  async #addUser(uid: string, key: Key): Promise<void> {
    const words = ['--access-key', key.accessKeyId, '--secret-key', key.secretAccessKey];
    await this.#admin('user', 'create', '--uid', uid, '--display-name', uid, ...words);
  }

  async #admin(...words: string[]): Promise<void> {
    await this.#run('radosgw-admin', ...words);
  }
}

function strangerOf(accessKeyId: string): string {
  return `stranger-${accessKeyId}`;
}

function newKey(): Key {
  return {
    accessKeyId: `AK${randomBytes(9).toString('hex').toUpperCase()}`,
    secretAccessKey: `secret${randomBytes(20).toString('hex')}`,
  };
}

async function stop(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  child.kill('SIGTERM');
  const late = setTimeout(() => child.kill('SIGKILL'), TERM_MS);
  await once(child, 'exit');
  clearTimeout(late);
}

/**
 * Without authentication between the daemons, because RGW would then insist on its encrypted mode. By default, the
 * monitor collects changes for a second before it applies them, and creating RGW's pools makes a dozen changes.
 */
function confOf(dir: string, fsid: string, monPort: number, port: number): string {
  return `[global]
fsid = ${fsid}
mon_host = v2:127.0.0.1:${monPort}
mon_data = ${dir}/mon
osd_data = ${dir}/osd
run_dir = ${dir}
keyring = /dev/null
admin_socket =
pid_file =
log_file = /dev/null
mon_cluster_log_file = /dev/null
log_to_stderr = true
err_to_stderr = true
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_mon_client_mode = crc secure
ms_bind_ipv4 = true
ms_bind_ipv6 = false
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
no_mon_config = true
paxos_propose_interval = 0.02
paxos_min_wait = 0.01
mon_data_avail_crit = 0
mon_data_avail_warn = 1
mon_allow_pool_size_one = true
osd_objectstore = memstore
memstore_device_bytes = 4294967296
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
rgw_frontends = beast endpoint=127.0.0.1:${port} tcp_nodelay=1
rgw_dns_name = localhost
rgw_enable_gc_threads = false
rgw_enable_lc_threads = false
rgw_enable_quota_threads = false
rgw_enable_usage_log = false
rgw_enable_ops_log = false
rgw_thread_pool_size = 64
`;
}
