/** Bounded concurrency for work on many items: each lane takes the next item. */

/** The number of lanes; may change while they run. */
interface Limit {
  readonly limit: number;
}

/**
 * Calls `work` on all of `items`, at most `lanes` at a time. After the first failure it starts nothing more, waits for
 * what is in flight, and rejects with that failure.
 */
export async function pooled<T>(
  lanes: number | Limit,
  items: Iterable<T> | AsyncIterable<T>,
  work: (item: T) => Promise<void>,
): Promise<void> {
  const iterator = Symbol.asyncIterator in items ? items[Symbol.asyncIterator]() : items[Symbol.iterator]();
  const { limit } = typeof lanes === 'number' ? { limit: () => lanes } : { limit: () => lanes.limit };
  let failure: { readonly error: unknown } | undefined;
  let isOver = false;
  let running = 0;
  // An async iterator is asked for one item at a time.
  let turn: Promise<unknown> = Promise.resolve();
  const take = (): Promise<IteratorResult<T>> => {
    const next = turn.then(() => iterator.next());
    turn = next.catch(() => undefined);
    return next;
  };
  await new Promise<void>((resolve) => {
    const lane = async (): Promise<void> => {
      // A lane exits when there are more than the limit.
      while (!failure && !isOver && running <= limit()) {
        const next = await take();
        if (next.done) isOver = true;
        if (next.done || failure) return;
        await work(next.value);
        open();
      }
    };
    const open = (): void => {
      while (!failure && !isOver && running < limit()) {
        running++;
        lane()
          .catch((error) => {
            failure ??= { error };
          })
          .finally(() => {
            running--;
            if (running === 0) resolve();
          });
      }
    };
    open();
  });
  if (!failure) return;
  await iterator.return?.();
  throw failure.error;
}
