/** Bounded concurrency for work on many things: a few lanes that take the next item each. */

/**
 * `work` on all of `items`, at most `lanes` at a time. Rejects with the first failure once nothing is in flight; what
 * had not begun by then is not begun.
 */
export async function pooled<T>(
  lanes: number,
  items: Iterable<T> | AsyncIterable<T>,
  work: (item: T) => Promise<void>,
): Promise<void> {
  const iterator = Symbol.asyncIterator in items ? items[Symbol.asyncIterator]() : items[Symbol.iterator]();
  let failure: { readonly error: unknown } | undefined;
  // Async iterators are asked one question at a time.
  let turn: Promise<unknown> = Promise.resolve();
  const take = (): Promise<IteratorResult<T>> => {
    const next = turn.then(() => iterator.next());
    turn = next.catch(() => undefined);
    return next;
  };
  const lane = async (): Promise<void> => {
    while (!failure) {
      const next = await take();
      if (next.done || failure) return;
      await work(next.value);
    }
  };
  const lane_ = () =>
    lane().catch((error) => {
      failure ??= { error };
    });
  await Promise.all(Array.from({ length: lanes }, lane_));
  if (!failure) return;
  await iterator.return?.();
  throw failure.error;
}
