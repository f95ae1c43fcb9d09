/**
 * One blob, downloaded in parts: each part is a separate request for its range, so that several parts are downloaded at
 * once, and an interrupted one resumes where it ended. From a server that returns only whole blobs, the parts are read
 * from one response, one after the other.
 */
import type { Descriptor } from '../documents.ts';
import { BlobBody, Target } from './blob-body.ts';
import type { Answer, Get } from './client.ts';
import type { Repository } from './repository.ts';

export class BlobDownload {
  readonly #repository: Repository;
  readonly #digest: string;
  readonly #sizeBytes: number;
  readonly #signal: AbortSignal;
  /** Where the registry redirects to; requesting it there saves a request. */
  #location: URL | undefined;
  /** Whether the server returns ranges, as its first response shows. */
  readonly #hasRanges = Promise.withResolvers<boolean>();
  #lastPart: Promise<void> = Promise.resolve();
  /** The rest of a whole blob, after the parts so far. */
  #rest: BlobBody | undefined;

  constructor(repository: Repository, { digest, size }: Descriptor, signal: AbortSignal) {
    this.#repository = repository;
    this.#digest = digest;
    this.#sizeBytes = size;
    this.#signal = signal;
  }

  /**
   * Fills `part` with the blob's bytes from `offset` on. Parts must be requested in order, each once. Throws NOT_FOUND,
   * CORRUPT for a blob of another size, OVERLOAD, UNAVAILABLE, TIMEOUT, ABORTED.
   */
  fill(part: Buffer, offset: number): Promise<void> {
    const target = new Target(part, offset);
    const before = this.#lastPart;
    this.#lastPart = offset === 0 ? this.#fill(target) : this.#fillBehind(before, target);
    return this.#lastPart;
  }

  async #fillBehind(before: Promise<void>, target: Target): Promise<void> {
    // The previous part either fails without a response, or gets one.
    const hasRanges = await Promise.race([this.#hasRanges.promise, before.then(() => false)]);
    if (!hasRanges) await before;
    await this.#fill(target);
  }

  async #fill(target: Target): Promise<void> {
    if (this.#rest?.at === target.at) await this.#rest.read(target).catch(() => undefined);
    let isFirstTry = true;
    const get = (): Get => {
      // The location may be why the last try failed.
      if (!isFirstTry) this.#location = undefined;
      isFirstTry = false;
      return this.#request(target);
    };
    const question = { what: `blob ${this.#digest}`, get, signal: this.#signal };
    await this.#repository.askOn(target, question, (answer) => this.#take(answer, target));
    if (this.#rest?.at === this.#sizeBytes) await this.#rest.end();
  }

  #request({ at, end }: Target): Get {
    const isWhole = at === 0 && end === this.#sizeBytes;
    return {
      path: `blobs/${this.#digest}`,
      location: this.#location,
      headers: isWhole ? {} : { range: `bytes=${at}-${end - 1}` },
      signal: this.#signal,
    };
  }

  async #take(answer: Answer, target: Target): Promise<void> {
    const body = new BlobBody(answer, target.at, this.#sizeBytes);
    this.#rest?.destroy();
    this.#rest = undefined;
    this.#location = answer.location;
    const isRange = answer.status === 206;
    this.#hasRanges.resolve(isRange);
    try {
      await body.read(target);
      if (isRange || target.end === this.#sizeBytes) await body.end();
      else this.#rest = body;
    } catch (error) {
      body.destroy();
      throw error;
    }
  }
}
