/** Who goes first: demand, then readahead, then prefetch. */
import type { ReadClass } from './tier.ts';

/** The classes in the order in which they go. */
export const BY_URGENCY: readonly ReadClass[] = ['demand', 'readahead', 'prefetch'];

/** Whether `a` goes before `b`. */
export function isMoreUrgent(a: ReadClass, b: ReadClass): boolean {
  return BY_URGENCY.indexOf(a) < BY_URGENCY.indexOf(b);
}
