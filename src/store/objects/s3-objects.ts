/**
 * Objects in a bucket of S3 or of one of its many likenesses. It relies on nothing but what they all have: whole puts,
 * reads after them, lists, copies. Checksums of theirs are not needed, for whoever reads knows the hash of what it
 * wants; conditional writes are tried once before anybody may count on them.
 */
import { createHash, randomBytes } from 'node:crypto';
import {
  CopyObjectCommand,
  DeleteObjectCommand,
  DeleteObjectsCommand,
  type DeleteObjectsCommandOutput,
  ListObjectsV2Command,
  PutObjectCommand,
} from '@aws-sdk/client-s3';
import { errorText, LazydiskError } from '../../errors.ts';
import { pooled } from '../pooled.ts';
import type { HttpAnswer, HttpClientOptions } from './http-client.ts';
import {
  checkKey,
  isKey,
  type ListOptions,
  type ObjectBytes,
  type ObjectInfo,
  type ObjectOptions,
  type ObjectStore,
  type PutOptions,
} from './object-store.ts';
import { type ListPage, PagedList } from './paged-list.ts';
import { RefusedError } from './refused-error.ts';
import { S3Requests } from './s3-client.ts';
import {
  errorOfFailure,
  isAbsent,
  isConflict,
  isUnknownCall,
  type S3Failure,
  S3FailureError,
} from './s3-errors.ts';
import type { S3Location } from './s3-url.ts';

/** What S3 takes and gives at once. */
const DELETE_KEYS_MAX = 1000;
const PAGE_OBJECTS_MAX = 1000;
/** Where a store knows no delete of many. */
const DELETE_LANES = 8;

/** How a store wants the version of a conditional write: as it gives it, without its quotes (RGW), or not at all. */
type Conditions = 'quoted' | 'bare' | 'none';

const PROBE = Buffer.from('whether this store compares before it sets');
const NO_VERSION = '"00000000000000000000000000000000"';

export class S3Objects implements ObjectStore {
  readonly url: string;
  readonly isWritable = true;
  readonly #location: S3Location;
  readonly #requests: S3Requests;
  #probing: Promise<Conditions> | undefined;
  #deletesMany = true;

  constructor(location: S3Location, options: HttpClientOptions = {}) {
    this.#location = location;
    this.url = location.url;
    this.#requests = new S3Requests(location, options);
  }

  get credentialExpiry(): number | undefined {
    return this.#requests.credentialExpiry;
  }

  /** Throws UNAVAILABLE, TIMEOUT, OVERLOAD, ABORTED, as all calls do. */
  async get(key: string, bytesMax: number, { signal }: ObjectOptions = {}): Promise<ObjectBytes | undefined> {
    const answer = await this.#read('GET', key, bytesMax, signal);
    return answer && { bytes: answer.body, version: answer.headers.etag ?? '' };
  }

  /** Cannot tell a bucket that is not there from an object that is not: S3 answers both with the same four digits. */
  async head(key: string, { signal }: ObjectOptions = {}): Promise<ObjectInfo | undefined> {
    const answer = await this.#read('HEAD', key, 0, signal);
    if (!answer) return undefined;
    const sizeBytes = Number(answer.headers['content-length']);
    const modifiedMs = Date.parse(answer.headers['last-modified'] ?? '');
    if (Number.isSafeInteger(sizeBytes) && !Number.isNaN(modifiedMs)) return { key, sizeBytes, modifiedMs };
    throw new LazydiskError('UNAVAILABLE', `${this.#what('read', key)}: an answer without length or date`);
  }

  /** Throws BUSY for `ifVersion`, and NO_SPACE where a store has a limit, as `copy` does. */
  async put(key: string, bytes: Uint8Array, options: PutOptions = {}): Promise<void> {
    const { ifVersion, sha256, signal } = options;
    const what = this.#what('write', key);
    checkKey(key);
    const conditions = ifVersion === undefined ? 'none' : await this.#conditions();
    const makePut = this.#putting(key, bytes, ifVersion, conditions);
    const make = () => {
      const command = makePut();
      if (sha256 !== undefined) withHeader(command, 'x-amz-content-sha256', () => sha256);
      return command;
    };
    const output = await this.#failing(
      what,
      'PutObject',
      () => this.#requests.call(make, { signal, bytes: bytes.length }),
      // Where nothing is, there is nothing of that version.
      async (failure) =>
        (typeof ifVersion === 'string' && isAbsent(failure)) ||
        // To who loses a race against another write, RGW says that something went wrong.
        (conditions !== 'none' &&
          failure.status === 500 &&
          (await this.#isOther(key, bytes, ifVersion, signal))),
    );
    if (!output) throw new LazydiskError('BUSY', `${what}: the object has changed meanwhile`);
  }

  async copy(from: string, to: string, { signal }: ObjectOptions = {}): Promise<boolean> {
    const { Bucket, Key } = this.#target(to);
    const source = `${Bucket}/${this.#target(from).Key.replaceAll('%', '%25')}`;
    const make = () => new CopyObjectCommand({ Bucket, Key, CopySource: source });
    const output = await this.#failing(
      this.#what('copy', from),
      'CopyObject',
      () => this.#requests.call(make, { signal }),
      isAbsent,
    );
    // The status of a copy comes before the copy is made; only what the answer then says counts.
    if (output && !output.CopyObjectResult?.ETag)
      throw new LazydiskError(
        'UNAVAILABLE',
        `${this.#what('copy', from)}: the answer does not say that it was`,
      );
    return output !== undefined;
  }

  async delete(keys: readonly string[], { signal }: ObjectOptions = {}): Promise<void> {
    for (const key of keys) checkKey(key);
    for (let at = 0; at < keys.length; at += DELETE_KEYS_MAX) {
      const some = keys.slice(at, at + DELETE_KEYS_MAX);
      if (!(await this.#deleteMany(some, signal))) await this.#deleteEach(some, signal);
    }
  }

  /** What lies there and is no key of ours is left out. Throws for pages that are not of what was asked. */
  list(prefix: string, options: ListOptions = {}): PagedList {
    return new PagedList(async (at) => {
      checkKey(prefix, 'prefix');
      return this.#page(prefix, at, options);
    });
  }

  /** Tries it: there are stores that refuse conditions, and some that ignore them. */
  async canCompareAndSet(): Promise<boolean> {
    return (await this.#conditions()) !== 'none';
  }

  async close(): Promise<void> {
    this.#requests.close();
  }

  async #read(
    method: 'GET' | 'HEAD',
    key: string,
    bytesMax: number,
    signal: AbortSignal | undefined,
  ): Promise<HttpAnswer | undefined> {
    const { Key } = this.#target(key);
    return this.#failing(
      this.#what('read', key),
      method === 'GET' ? 'GetObject' : 'HeadObject',
      () => this.#requests.read(method, Key, bytesMax, signal),
      isAbsent,
    );
  }

  #putting(
    key: string,
    bytes: Uint8Array,
    ifVersion: string | null | undefined,
    conditions: Conditions,
  ): () => PutObjectCommand {
    const target = { ...this.#target(key), Body: bytes, ContentLength: bytes.length };
    if (conditions === 'none' || ifVersion === undefined) return () => new PutObjectCommand(target);
    if (ifVersion === null) return () => new PutObjectCommand({ ...target, IfNoneMatch: '*' });
    const IfMatch = conditions === 'bare' ? ifVersion.replaceAll('"', '') : ifVersion;
    return () => new PutObjectCommand({ ...target, IfMatch });
  }

  /** False if the store knows no such call. */
  async #deleteMany(keys: readonly string[], signal: AbortSignal | undefined): Promise<boolean> {
    if (!this.#deletesMany || keys.length === 1) return false;
    const what = `${this.url}: cannot delete ${keys.length} objects`;
    const make = () => {
      const Objects = keys.map((key) => ({ Key: this.#target(key).Key }));
      const command = new DeleteObjectsCommand({
        Bucket: this.#location.bucket,
        Delete: { Objects, Quiet: true },
      });
      // Some stores insist on it, as S3 once did, and do not know what came after.
      withHeader(command, 'content-md5', (body) =>
        createHash('md5')
          .update(body as string)
          .digest('base64'),
      );
      return command;
    };
    const output: DeleteObjectsCommandOutput | undefined = await this.#failing(
      what,
      'DeleteObjects',
      () => this.#requests.call(make, { signal }),
      isUnknownCall,
    );
    if (!output) {
      this.#deletesMany = false;
      return false;
    }
    const failed = (output.Errors ?? []).filter(({ Code }) => Code !== 'NoSuchKey');
    const [first] = failed;
    if (!first) return true;
    const text = `${what}: ${failed.length} stay, ${JSON.stringify(this.#keyOf(first.Key) ?? '')} first`;
    const failure = {
      status: 200,
      code: first.Code ?? '',
      location: undefined,
      region: undefined,
      dateMs: undefined,
    };
    if (first.Code === 'AccessDenied') throw new RefusedError(`${text}: access denied to DeleteObject`);
    throw errorOfFailure(text, 'DeleteObject', failure);
  }

  async #deleteEach(keys: readonly string[], signal: AbortSignal | undefined): Promise<void> {
    // When it fails nothing is under way any more: a sweep then says that it has ended.
    await pooled(DELETE_LANES, keys, async (key) => {
      const target = this.#target(key);
      await this.#failing(
        this.#what('delete', key),
        'DeleteObject',
        () => this.#requests.call(() => new DeleteObjectCommand(target), { signal }),
        isAbsent,
      );
    });
  }

  async #page(
    prefix: string,
    at: string | undefined,
    { pageMax = PAGE_OBJECTS_MAX, shallow, signal }: ListOptions,
  ): Promise<ListPage> {
    const what = this.#what('list', prefix);
    const make = () =>
      new ListObjectsV2Command({
        Bucket: this.#location.bucket,
        Prefix: `${this.#location.prefix}${prefix}`,
        MaxKeys: Math.min(pageMax, PAGE_OBJECTS_MAX),
        ...(shallow && { Delimiter: '/' }),
        ContinuationToken: at,
      });
    const output = await this.#failing(what, 'ListObjectsV2', () => this.#requests.call(make, { signal }));
    const next = output?.IsTruncated ? output.NextContinuationToken : undefined;
    if (output?.IsTruncated && (next === undefined || next === at))
      throw new LazydiskError('UNAVAILABLE', `${what}: more was promised, and not where`);
    const infos: ObjectInfo[] = [];
    for (const { Key, Size, LastModified } of output?.Contents ?? []) {
      const key = this.#keyOf(Key);
      if (!key?.startsWith(prefix) || Size === undefined || !LastModified)
        throw new LazydiskError('UNAVAILABLE', `${what}: an entry that was not asked for`);
      if (isKey(key)) infos.push({ key, sizeBytes: Size, modifiedMs: LastModified.getTime() });
    }
    for (const { Prefix } of output?.CommonPrefixes ?? []) {
      const key = this.#keyOf(Prefix);
      if (!key?.startsWith(prefix) || !key.endsWith('/'))
        throw new LazydiskError('UNAVAILABLE', `${what}: a folder that was not asked for`);
      if (isKey(key.slice(0, -1))) infos.push({ key, sizeBytes: 0, modifiedMs: 0 });
    }
    return { infos, next };
  }

  /** Whether there is by now neither what a write was to replace nor what it was to put there. */
  async #isOther(
    key: string,
    bytes: Uint8Array,
    ifVersion: string | null | undefined,
    signal: AbortSignal | undefined,
  ): Promise<boolean> {
    const now = await this.#read('GET', key, bytes.length, signal);
    if (!now) return ifVersion !== null;
    return now.headers.etag !== ifVersion && !now.body.equals(bytes);
  }

  #conditions(): Promise<Conditions> {
    this.#probing ??= this.#probe().catch((error) => {
      this.#probing = undefined;
      throw error;
    });
    return this.#probing;
  }

  async #probe(): Promise<Conditions> {
    const key = `state/probe-${randomBytes(8).toString('hex')}`;
    const accepts = (ifVersion: string | null, conditions: Conditions) =>
      this.#accepts(key, ifVersion, conditions);
    try {
      if (!(await accepts(null, 'quoted')) || (await accepts(null, 'quoted'))) return 'none';
      const version = (await this.get(key, PROBE.length))?.version;
      if (!version) return 'none';
      for (const conditions of ['quoted', 'bare'] as const)
        if (!(await accepts(NO_VERSION, conditions)) && (await accepts(version, conditions)))
          return conditions;
      return 'none';
    } finally {
      // Who may write and not delete has an answer, and a small object more.
      await this.delete([key]).catch(() => undefined);
    }
  }

  /** Whether a write on this condition is done; not, if the store finds it unmet or does not know it. */
  async #accepts(key: string, ifVersion: string | null, conditions: Conditions): Promise<boolean> {
    const make = this.#putting(key, PROBE, ifVersion, conditions);
    const output = await this.#failing(
      this.#what('write', key),
      'PutObject',
      () => this.#requests.call(make, {}),
      (failure) => isConflict(failure) || isUnknownCall(failure) || isAbsent(failure),
    );
    return output !== undefined;
  }

  /** What `request` gives; undefined if it fails in a way that means that. */
  async #failing<T>(
    what: string,
    operation: string,
    request: () => Promise<T>,
    isNothing: (failure: S3Failure) => boolean | Promise<boolean> = () => false,
  ): Promise<T | undefined> {
    try {
      return await request();
    } catch (error) {
      if (error instanceof S3FailureError) {
        if (await isNothing(error.failure)) return undefined;
        throw errorOfFailure(what, operation, error.failure);
      }
      const code = error instanceof LazydiskError ? error.code : 'UNAVAILABLE';
      throw new LazydiskError(code, `${what}: ${errorText(error)}`, { cause: error });
    }
  }

  #target(key: string): { Bucket: string; Key: string } {
    checkKey(key);
    return { Bucket: this.#location.bucket, Key: `${this.#location.prefix}${key}` };
  }

  /** The key of ours, of one in the bucket; undefined if it is outside of the store. */
  #keyOf(key: string | undefined): string | undefined {
    const { prefix } = this.#location;
    return key?.startsWith(prefix) ? key.slice(prefix.length) : undefined;
  }

  #what(verb: string, key: string): string {
    return `${this.url}: cannot ${verb} ${key}`;
  }
}

/** Gives the request of `command` one more header, made of its body, before it is signed. */
function withHeader(
  command: PutObjectCommand | DeleteObjectsCommand,
  name: string,
  make: (body: unknown) => string,
): void {
  // The two stacks differ in what they give, which is of no interest here.
  const stack = command.middlewareStack as PutObjectCommand['middlewareStack'];
  stack.add(
    (next) => (args) => {
      const request = args.request as { body: unknown; headers: Record<string, string> };
      request.headers[name] = make(request.body);
      return next(args);
    },
    { step: 'build', name },
  );
}
