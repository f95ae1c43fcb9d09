/**
 * Wraps any object store for a process that is stopped just before a certain request, and continues when a test says
 * so.
 */
import type { ObjectStore } from '../../src/store/objects/object-store.ts';
import { HookedObjects, type RequestHook } from './hooked-objects.ts';

type Request = Parameters<RequestHook>[0];

export class PausedObjects extends HookedObjects {
  /** Resolves when the process has been stopped. */
  readonly stopped: Promise<void>;
  readonly resume: () => void;

  /** `isIt` is called with each key of a request; of a copy, only with the target. */
  constructor(inner: ObjectStore, isIt: (request: Request, key: string) => boolean) {
    const reached = Promise.withResolvers<void>();
    const going = Promise.withResolvers<void>();
    super(inner, async (request, keys) => {
      const asked = request === 'copy' ? keys.slice(1) : keys;
      if (!asked.some((key) => isIt(request, key))) return;
      reached.resolve();
      await going.promise;
    });
    this.stopped = reached.promise;
    this.resume = going.resolve;
  }
}
