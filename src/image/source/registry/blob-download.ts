/**
 * One blob, downloaded part by part: each part is a request of its own for that range, so that several parts come at once,
 * and one that breaks goes on where it ended. From a server that gives whole blobs only, the parts are read off one answer,
 * one after the other.
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
  /** Where the registry keeps it; asking there spares a request. */
  #location: URL | undefined;
  /** Whether the server gives ranges, which its first answer shows. */
  readonly #hasRanges = Promise.withResolvers<boolean>();
  #lastPart: Promise<void> = Promise.resolve();
  /** Of a whole blob, what the parts so far have left. */
  #rest: BlobBody | undefined;

  constructor(repository: Repository, { digest, size }: Descriptor, signal: AbortSignal) {
    this.#repository = repository;
    this.#digest = digest;
    this.#sizeBytes = size;
    this.#signal = signal;
  }

  /**
   * Fills `part` with the blob's bytes from `offset` on. Parts are to be asked for in order, each once. Throws NOT_FOUND,
   * CORRUPT for a blob of another size, OVERLOAD, UNAVAILABLE, TIMEOUT, ABORTED.
   */
  fill(part: Buffer, offset: number): Promise<void> {
    const target = new Target(part, offset);
    const before = this.#lastPart;
    this.#lastPart = offset === 0 ? this.#fill(target) : this.#fillBehind(before, target);
    return this.#lastPart;
  }

  async #fillBehind(before: Promise<void>, target: Target): Promise<void> {
    // The part before fails before it has an answer, or gives one.
    const hasRanges = await Promise.race([this.#hasRanges.promise, before.then(() => false)]);
    if (!hasRanges) await before;
    await this.#fill(target);
  }

  async #fill(target: Target): Promise<void> {
    if (this.#rest?.at === target.at) await this.#rest.read(target).catch(() => undefined);
    let isFirstTry = true;
    const get = (): Get => {
      // It may be why the last try failed.
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
