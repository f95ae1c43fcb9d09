/** Who goes first when several reads wait for one thing: demand, then readahead, then prefetch; then who came first. */
import type { ReadClass, ReadContext } from './tier.ts';

const URGENCY: Record<ReadClass, number> = { demand: 2, readahead: 1, prefetch: 0 };

/** Whether `a` goes before `b`. */
export function isMoreUrgent(a: ReadClass, b: ReadClass): boolean {
  return URGENCY[a] > URGENCY[b];
}

/** The first of the most urgent ones. The classes are read now, because a read may have been promoted. */
export function mostUrgent<W extends { readonly ctx: ReadContext }>(waiters: readonly W[]): W | undefined {
  let best: W | undefined;
  for (const waiter of waiters) {
    if (!best || isMoreUrgent(waiter.ctx.class, best.ctx.class)) best = waiter;
    if (best.ctx.class === 'demand') return best;
  }
  return best;
}

/** The last of the least urgent ones. */
export function leastUrgent<W extends { readonly ctx: ReadContext }>(waiters: readonly W[]): W | undefined {
  let worst: W | undefined;
  for (const waiter of waiters)
    if (!worst || !isMoreUrgent(waiter.ctx.class, worst.ctx.class)) worst = waiter;
  return worst;
}
