/**
 * A repository at its registry and at mirrors of it: requests go to the first one that works, and are retried while
 * that may help. A mirror that fails is dropped for good, because the rest of the image may be missing there too; only
 * the registry itself, which comes last, is worth waiting for.
 */
import { type Patience, PatientRetries } from '../../../async/patience.ts';
import { codeOf, isRetryable, LazydiskError } from '../../../errors.ts';
import { HttpClient } from '../../../http-client/client.ts';
import { namedError } from './answer-error.ts';
import type { AuthEnvironment } from './auth-files.ts';
import { type Answer, type Get, RegistryClient } from './client.ts';
import type { Endpoint } from './endpoint.ts';

/** Longer than the client's defaults, because registries are far away. */
const CONNECT_MS = 10_000;
const STALL_MS = 30_000;
/** How many bytes a failed try must have received for the retries to start over. */
const PROGRESS_BYTES = 256 * 1024;

export interface RepositoryOptions {
  /** At least one; the registry itself last. */
  readonly endpoints: readonly Endpoint[];
  /** Certificates in PEM of the authorities to trust; by default those that Node trusts. */
  readonly ca?: string | undefined;
  readonly patience?: Patience | undefined;
  readonly environment: AuthEnvironment;
}

/** A request for something in the repository. */
export interface Question {
  /** For people: `tag 1.27`, `blob sha256:…`. */
  readonly what: string;
  /** Called for each try. */
  get(): Get;
  readonly signal: AbortSignal;
}

export class Repository {
  /** Aborted by `close`, and by the signal of the patience. */
  readonly signal: AbortSignal;
  readonly #clients: readonly RegistryClient[];
  readonly #http: HttpClient;
  readonly #retries: PatientRetries;
  readonly #closing = new AbortController();
  /** Index of the client in use. */
  #at = 0;

  constructor({ endpoints, ca, patience, environment }: RepositoryOptions) {
    this.#http = new HttpClient({
      connectMs: CONNECT_MS,
      stallMs: STALL_MS,
      ...(ca !== undefined && { ca }),
    });
    this.#retries = new PatientRetries({ patience, peer: 'registry' });
    const signals = [patience?.signal, this.#closing.signal].filter((one) => one !== undefined);
    this.signal = AbortSignal.any(signals);
    this.#clients = endpoints.map((one) => new RegistryClient(one, this.#http, environment, this.signal));
  }

  /** `HOST/REPOSITORY` of the endpoint in use. */
  get name(): string {
    return this.#clients[this.#at]!.name;
  }

  /**
   * Returns the result of `take` for the response; `take` must read the whole body or destroy it, and may be called
   * again. Throws as RegistryClient.get and `take` do, with a message that names registry, repository and what was
   * requested.
   */
  ask<T>(question: Question, take: (answer: Answer) => Promise<T>): Promise<T> {
    return this.#retries.run(question.signal, () => this.#askOnce(question, take));
  }

  /**
   * The same for bytes that arrive in order: repeats the request until `progress.isDone`; a try that received enough of
   * them starts the count of tries over.
   */
  async askOn(
    progress: { readonly isDone: boolean; readonly doneBytes: number },
    question: Question,
    take: (answer: Answer) => Promise<void>,
  ): Promise<void> {
    while (!progress.isDone) {
      await this.#retries.run(question.signal, async () => {
        const before = progress.doneBytes;
        try {
          await this.#askOnce(question, take);
        } catch (error) {
          const hasMoved = progress.isDone || progress.doneBytes - before >= PROGRESS_BYTES;
          if (!isRetryable(error) || !hasMoved) throw error;
        }
      });
    }
  }

  /** Ends all requests. */
  close(): void {
    this.#closing.abort(new LazydiskError('ABORTED', 'the image source is closed'));
    this.#http.close();
  }

  async #askOnce<T>({ what, get }: Question, take: (answer: Answer) => Promise<T>): Promise<T> {
    for (;;) {
      const at = this.#at;
      const client = this.#clients[at]!;
      try {
        return await take(await client.get(get()));
      } catch (error) {
        if (codeOf(error) === 'ABORTED' || at === this.#clients.length - 1)
          throw namedError(client.name, what, error);
        this.#at = Math.max(this.#at, at + 1);
      }
    }
  }
}
