/**
 * Objects in a bucket of S3 or a compatible store. It relies only on what they all have: whole puts, read-after-write,
 * lists, copies. It needs none of their checksums, because readers know the hash of what they want; conditional writes
 * are probed once before anyone relies on them.
 */
import { hash, randomBytes } from 'node:crypto';
import { pooled } from '../../async/pooled.ts';
import { LazydiskError, withContext } from '../../errors.ts';
import type { HttpAnswer, HttpClientOptions } from '../../http-client/client.ts';
import { PROBE_PREFIX } from '../roots/layout.ts';
import {
  checkKey,
  type GetOptions,
  isKey,
  type ListOptions,
  type ObjectBytes,
  type ObjectInfo,
  type ObjectOptions,
  type ObjectStore,
  type PutOptions,
} from './object-store.ts';
import { type ListPage, PagedList } from './paged-list.ts';
import { type S3Call, S3Requests } from './s3-client.ts';
import { deletionOf, isCopied, parseListPage, parseUndeleted } from './s3-documents.ts';
import {
  errorOfFailure,
  isAbsent,
  isConflict,
  isUnknownCall,
  type S3Failure,
  S3FailureError,
} from './s3-errors.ts';
import type { S3Location } from './s3-url.ts';
import { XmlError } from './xml.ts';

/** S3's limits for one call. */
const DELETE_KEYS_MAX = 1000;
const PAGE_OBJECTS_MAX = 1000;
/** If a store does not support DeleteObjects. */
const DELETE_LANES = 8;

/** How a store wants the version of a conditional write: as it returned it, without the quotes (RGW), or not at all. */
type Conditions = 'quoted' | 'bare' | 'none';

/** This many probes must find that a store does not compare. */
const PROBES_MAX = 4;
const PROBE = Buffer.from('whether this store compares before it sets');
const NOTHING = Buffer.alloc(0);
/** A key that no object has. */
const NO_KEY = 'nothing';
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
  async get(key: string, bytesMax: number, options: GetOptions = {}): Promise<ObjectBytes | undefined> {
    const answer = await this.#read('GET', key, bytesMax, options);
    return answer && { bytes: answer.body, version: answer.headers.etag ?? '' };
  }

  /** Cannot tell a missing bucket from a missing object: S3 answers both with a bare 404. */
  async head(key: string, options: ObjectOptions = {}): Promise<ObjectInfo | undefined> {
    const answer = await this.#read('HEAD', key, 0, options);
    if (!answer) return undefined;
    const sizeBytes = Number(answer.headers['content-length']);
    const modifiedMs = Date.parse(answer.headers['last-modified'] ?? '');
    if (Number.isSafeInteger(sizeBytes) && !Number.isNaN(modifiedMs)) return { key, sizeBytes, modifiedMs };
    throw new LazydiskError('UNAVAILABLE', `${this.#what('read', key)}: an answer without length or date`);
  }

  /** Throws BUSY for `ifVersion`, and NO_SPACE if the store has a limit, as `copy` does. */
  async put(key: string, bytes: Uint8Array, options: PutOptions = {}): Promise<void> {
    const { ifVersion, sha256, signal } = options;
    const what = this.#what('write', key);
    checkKey(key);
    const conditions = ifVersion === undefined ? 'none' : await this.#conditions();
    const call = { ...this.#putting(key, bytes, ifVersion, conditions), sha256, signal };
    const output = await this.#failing(
      what,
      'PutObject',
      () => this.#requests.call(call),
      // A missing object does not have that version.
      async (failure) =>
        (typeof ifVersion === 'string' && isAbsent(failure)) ||
        // RGW answers 500 to a write that loses a race against another.
        (conditions !== 'none' &&
          failure.status === 500 &&
          (await this.#isOther(key, bytes, ifVersion, signal))),
    );
    if (!output) throw new LazydiskError('BUSY', `${what}: the object has changed meanwhile`);
  }

  async copy(from: string, to: string, { signal }: ObjectOptions = {}): Promise<boolean> {
    const what = this.#what('copy', from);
    const source = `/${this.#location.bucket}/${this.#pathOf(from).replaceAll('%', '%25')}`;
    const headers = { 'x-amz-copy-source': source };
    const call: S3Call = { method: 'PUT', key: this.#pathOf(to), headers, body: NOTHING, signal };
    const answer = await this.#failing(what, 'CopyObject', () => this.#requests.call(call), isAbsent);
    // S3 sends the status before it makes the copy; only the body counts.
    if (answer && !this.#parsed(what, () => isCopied(answer.body)))
      throw new LazydiskError('UNAVAILABLE', `${what}: the answer does not say that it was`);
    return answer !== undefined;
  }

  async delete(keys: readonly string[], { signal }: ObjectOptions = {}): Promise<void> {
    for (const key of keys) checkKey(key);
    for (let at = 0; at < keys.length; at += DELETE_KEYS_MAX) {
      const some = keys.slice(at, at + DELETE_KEYS_MAX);
      if (!(await this.#deleteMany(some, signal))) await this.#deleteEach(some, signal);
    }
  }

  /** Leaves out objects whose names are not valid keys. Throws for pages with entries outside `prefix`. */
  list(prefix: string, options: ListOptions = {}): PagedList {
    return new PagedList(async (at) => {
      checkKey(prefix, 'prefix');
      return this.#page(prefix, at, options);
    });
  }

  /** The date of a response, whatever else it says. */
  async nowMs({ signal }: ObjectOptions = {}): Promise<number> {
    const what = `${this.url}: cannot ask for the time`;
    const read = { method: 'HEAD', key: this.#pathOf(NO_KEY), bytesMax: 0, signal } as const;
    let dateMs: number | undefined;
    await this.#failing(
      what,
      'HeadObject',
      () => this.#requests.read(read),
      (failure) => {
        dateMs = failure.dateMs;
        return dateMs !== undefined;
      },
    );
    if (dateMs !== undefined) return dateMs;
    throw new LazydiskError('UNAVAILABLE', `${what}: an answer without a date`);
  }

  /** Probes the store: some stores reject conditions, and some ignore them. */
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
    { signal, into }: GetOptions,
  ): Promise<HttpAnswer | undefined> {
    const read = { method, key: this.#pathOf(key), bytesMax, into, signal };
    return this.#failing(
      this.#what('read', key),
      method === 'GET' ? 'GetObject' : 'HeadObject',
      () => this.#requests.read(read),
      isAbsent,
    );
  }

  #putting(
    key: string,
    body: Uint8Array,
    ifVersion: string | null | undefined,
    conditions: Conditions,
  ): S3Call {
    const call = { method: 'PUT', key: this.#pathOf(key), body } as const;
    if (conditions === 'none' || ifVersion === undefined) return call;
    // If resent, it would conflict with its own write.
    if (ifVersion === null) return { ...call, headers: { 'if-none-match': '*' }, isOnce: true };
    const version = conditions === 'bare' ? ifVersion.replaceAll('"', '') : ifVersion;
    return { ...call, headers: { 'if-match': version }, isOnce: true };
  }

  /** False if the store does not support the call. */
  async #deleteMany(keys: readonly string[], signal: AbortSignal | undefined): Promise<boolean> {
    if (!this.#deletesMany || keys.length === 1) return false;
    const what = `${this.url}: cannot delete ${keys.length} objects`;
    const body = deletionOf(keys.map((key) => this.#pathOf(key)));
    // Some stores require Content-MD5, as S3 once did, and do not know its successors.
    const headers = { 'content-md5': hash('md5', body, 'base64'), 'content-type': 'application/xml' };
    const call: S3Call = { method: 'POST', key: '', query: { delete: '' }, headers, body, signal };
    const answer = await this.#failing(what, 'DeleteObjects', () => this.#requests.call(call), isUnknownCall);
    if (!answer) {
      this.#deletesMany = false;
      return false;
    }
    const undeleted = this.#parsed(what, () => parseUndeleted(answer.body));
    const failed = undeleted.filter(({ code }) => code !== 'NoSuchKey');
    const [first] = failed;
    if (!first) return true;
    const text = `${what}: ${failed.length} stay, ${JSON.stringify(this.#keyOf(first.key) ?? '')} first`;
    const failure = {
      status: 200,
      code: first.code,
      location: undefined,
      region: undefined,
      dateMs: undefined,
    };
    if (first.code === 'AccessDenied')
      throw new LazydiskError('UNAVAILABLE', `${text}: access denied to DeleteObject`, { retryable: false });
    throw errorOfFailure(text, 'DeleteObject', failure);
  }

  async #deleteEach(keys: readonly string[], signal: AbortSignal | undefined): Promise<void> {
    // On failure no call may still be in progress, because a sweep then closes its trash.
    await pooled(DELETE_LANES, keys, async (key) => {
      const call: S3Call = { method: 'DELETE', key: this.#pathOf(key), signal };
      await this.#failing(
        this.#what('delete', key),
        'DeleteObject',
        () => this.#requests.call(call),
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
    const query = {
      'list-type': '2',
      prefix: `${this.#location.prefix}${prefix}`,
      'max-keys': String(Math.min(pageMax, PAGE_OBJECTS_MAX)),
      ...(shallow && { delimiter: '/' }),
      ...(at !== undefined && { 'continuation-token': at }),
    };
    const call: S3Call = { method: 'GET', key: '', query, signal };
    const answer = await this.#failing(what, 'ListObjectsV2', () => this.#requests.call(call));
    const page = this.#parsed(what, () => parseListPage(answer!.body));
    const next = page.isTruncated ? page.token : undefined;
    if (page.isTruncated && (next === undefined || next === at))
      throw new LazydiskError('UNAVAILABLE', `${what}: more was promised, and not where`);
    const infos: ObjectInfo[] = [];
    for (const { key: path, sizeBytes, modifiedMs } of page.objects) {
      const key = this.#keyOf(path);
      if (!key?.startsWith(prefix))
        throw new LazydiskError('UNAVAILABLE', `${what}: an entry that was not asked for`);
      if (isKey(key)) infos.push({ key, sizeBytes, modifiedMs });
    }
    for (const path of page.prefixes) {
      const key = this.#keyOf(path);
      if (!key?.startsWith(prefix) || !key.endsWith('/'))
        throw new LazydiskError('UNAVAILABLE', `${what}: a folder that was not asked for`);
      if (isKey(key.slice(0, -1))) infos.push({ key, sizeBytes: 0, modifiedMs: 0 });
    }
    return { infos, next };
  }

  /**
   * Whether the object is by now neither the one that the write was to replace nor the one that it was to put there.
   */
  async #isOther(
    key: string,
    bytes: Uint8Array,
    ifVersion: string | null | undefined,
    signal: AbortSignal | undefined,
  ): Promise<boolean> {
    const now = await this.#read('GET', key, bytes.length, signal ? { signal } : {});
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

  /**
   * Probes one of 256 objects that are never deleted; otherwise a writer without delete permission would leave one each
   * time. Another writer may be probing the same object, which looks like missing support, so only several such results
   * count.
   */
  async #probe(): Promise<Conditions> {
    for (let tried = 0; tried < PROBES_MAX; tried++) {
      const found = await this.#probeOn(`${PROBE_PREFIX}${randomBytes(1).toString('hex')}`);
      if (found !== 'none') return found;
    }
    return 'none';
  }

  async #probeOn(key: string): Promise<Conditions> {
    const accepts = (ifVersion: string | null, conditions: Conditions) =>
      this.#accepts(key, ifVersion, conditions);
    const made = await accepts(null, 'quoted');
    const version = made?.headers.etag ?? (await this.get(key, PROBE.length))?.version;
    if (!version) return 'none';
    // A store that compares rejects all three.
    const [isMadeAgain, ...areSet] = await Promise.all([
      accepts(null, 'quoted'),
      accepts(NO_VERSION, 'quoted'),
      accepts(NO_VERSION, 'bare'),
    ]);
    if (isMadeAgain) return 'none';
    for (const [n, conditions] of (['quoted', 'bare'] as const).entries())
      if (!areSet[n] && (await accepts(version, conditions))) return conditions;
    return 'none';
  }

  /** The response to a write on this condition; undefined if the store finds it unmet or does not support it. */
  #accepts(key: string, ifVersion: string | null, conditions: Conditions): Promise<HttpAnswer | undefined> {
    const call = this.#putting(key, PROBE, ifVersion, conditions);
    return this.#failing(
      this.#what('write', key),
      'PutObject',
      () => this.#requests.call(call),
      (failure) => isConflict(failure) || isUnknownCall(failure) || isAbsent(failure),
    );
  }

  /** Returns what `request` returns; undefined for a failure that `isNothing` accepts. */
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
      throw withContext(error, what, 'UNAVAILABLE');
    }
  }

  /** Returns what `parse` returns for a response, which may not come from S3 at all. */
  #parsed<T>(what: string, parse: () => T): T {
    try {
      return parse();
    } catch (cause) {
      if (!(cause instanceof XmlError)) throw cause;
      throw new LazydiskError('UNAVAILABLE', `${what}: not an answer of S3: ${cause.message}`, { cause });
    }
  }

  /** The key in the bucket. */
  #pathOf(key: string): string {
    checkKey(key);
    return `${this.#location.prefix}${key}`;
  }

  /** Our key for a key in the bucket; undefined if it is outside the store. */
  #keyOf(key: string): string | undefined {
    const { prefix } = this.#location;
    return key.startsWith(prefix) ? key.slice(prefix.length) : undefined;
  }

  #what(verb: string, key: string): string {
    return `${this.url}: cannot ${verb} ${key}`;
  }
}
