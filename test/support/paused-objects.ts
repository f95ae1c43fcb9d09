/** Any object store for a process that is stopped just before a certain request, and goes on when a test says so. */
import type { ObjectOptions, ObjectStore, PutOptions } from '../../src/store/objects/object-store.ts';
import { DyingObjects } from './dying-objects.ts';

export type Change = 'put' | 'copy' | 'delete';

export class PausedObjects extends DyingObjects {
  readonly #isIt: (change: Change, key: string) => boolean;
  readonly #reached = Promise.withResolvers<void>();
  readonly #going = Promise.withResolvers<void>();

  /** `isIt` is asked of what is about to be written, copied to or deleted. */
  constructor(inner: ObjectStore, isIt: (change: Change, key: string) => boolean) {
    super(inner, Number.POSITIVE_INFINITY);
    this.#isIt = isIt;
  }

  /** Resolves when the process has been stopped. */
  get stopped(): Promise<void> {
    return this.#reached.promise;
  }

  resume(): void {
    this.#going.resolve();
  }

  override async put(key: string, bytes: Uint8Array, options?: PutOptions): Promise<void> {
    await this.#pause('put', [key]);
    return super.put(key, bytes, options);
  }

  override async copy(from: string, to: string, options?: ObjectOptions): Promise<boolean> {
    await this.#pause('copy', [to]);
    return super.copy(from, to, options);
  }

  override async delete(keys: readonly string[], options?: ObjectOptions): Promise<void> {
    await this.#pause('delete', keys);
    return super.delete(keys, options);
  }

  async #pause(change: Change, keys: readonly string[]): Promise<void> {
    if (!keys.some((key) => this.#isIt(change, key))) return;
    this.#reached.resolve();
    await this.#going.promise;
  }
}
