/** What a daemon reports when the store's clock and its host's differ. */
import t from 'tap';
import { createLog } from '../../src/daemon/log.ts';
import { SkewWatch } from '../../src/daemon/skew-watch.ts';
import type { Clock } from '../../src/store/roots/clock.ts';
import type { StoreParts } from '../../src/store/roots/parts.ts';
import { DEFAULT_POLICY } from '../../src/store/roots/policy.ts';
import { withCalls } from '../support/fsck-store.ts';
import { MapObjects } from '../support/map-objects.ts';

t.test('a difference is logged once, shown as long as it lasts, and logged when it is over', async (t) => {
  const answers: (() => number)[] = [
    () => {
      throw new Error('no answer');
    },
    () => Date.now() + 600_000,
    () => Date.now() + 600_000,
    () => {
      throw new Error('no answer');
    },
    () => Date.now(),
  ];
  const objects = withCalls(new MapObjects(), { nowMs: async () => answers.shift()!() });
  const seen: (string | null)[] = [];
  const over = Promise.withResolvers<void>();
  const clock = {
    sleep: async (_: number, signal?: AbortSignal) => {
      const { skewMs, problem } = watch.stats();
      seen.push(skewMs === null ? 'unknown' : problem && 'ahead');
      if (answers.length > 0) return;
      over.resolve();
      await new Promise<void>((resolve) => signal!.addEventListener('abort', () => resolve()));
    },
  } as Clock;
  const lines: string[] = [];
  const log = createLog('info', { write: (line) => void lines.push(line) });
  const watch = new SkewWatch({ objects, clock, policy: DEFAULT_POLICY } as StoreParts, log);
  await over.promise;
  watch.close();
  t.same(seen, ['unknown', 'ahead', 'ahead', 'ahead', null]);
  t.match(
    lines.map((line) => JSON.parse(line)),
    [
      { level: 'warn', skewMs: Number, msg: /^the clock of .* ahead of this host's/ },
      { level: 'info', skewMs: 0, msg: "the store's clock and this host's agree again" },
    ],
  );
  t.equal(lines.length, 2);
});

t.test('a store that is only read is not asked for the time', async (t) => {
  const objects = {
    ...withCalls(new MapObjects(), { nowMs: () => t.fail('asked') as never }),
    isWritable: false,
  };
  const log = createLog('silent');
  const watch = new SkewWatch({ objects, policy: DEFAULT_POLICY } as unknown as StoreParts, log);
  t.same(watch.stats(), { skewMs: null, problem: null });
});
