/** Suites that run on several views of one store, as several processes would have. */
import type { Test } from 'tap';

/** Creates an empty store, and returns a function that opens views of it. */
export type OpenViews<Store> = (t: Test) => Promise<() => Promise<Store>>;

/**
 * Returns a function that runs a subtest on a new store. The subtest gets one view, and a function that opens more; all
 * are closed at its end.
 */
export function testsOnViews<Store extends { close(): Promise<void> }>(t: Test, open: OpenViews<Store>) {
  return (name: string, body: (t: Test, store: Store, again: () => Promise<Store>) => Promise<void>) =>
    t.test(name, async (t) => {
      const openView = await open(t);
      const stores: Store[] = [];
      const view = async () => {
        const store = await openView();
        stores.push(store);
        return store;
      };
      t.teardown(() => Promise.all(stores.map((store) => store.close())));
      await body(t, await view(), view);
    });
}
