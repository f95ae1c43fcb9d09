/** What travels with a read, through every queue and wait: how urgent it is, for whom, and until when. */

/** Why something is being read; demand goes before readahead, readahead before prefetch. */
export type ReadClass = 'demand' | 'readahead' | 'prefetch';

/**
 * It is alive: when a more urgent caller joins a read in flight, `class` and `deadline` move up, so whoever queues or
 * waits looks at them when it matters, and keeps no copy; `drives` grows.
 */
export interface ReadContext {
  readonly class: ReadClass;
  /** On the clock of `performance.now()`, milliseconds. */
  readonly deadline: number;
  readonly signal?: AbortSignal;
  /** Whose read this is: for error texts, for its share of what all drives use, and for whose failure it is. */
  readonly drive?: string;
  /** All drives that wait for it, `drive` first; undefined where it is that one alone. */
  readonly drives?: ReadonlySet<string>;
  /** Has `listener` called when `class` or `drives` has changed, until the returned function is called. For who queues. */
  onPromote?(listener: () => void): () => void;
}

/** The classes in the order in which they go. */
export const BY_URGENCY: readonly ReadClass[] = ['demand', 'readahead', 'prefetch'];

/** Whether `a` goes before `b`. */
export function isMoreUrgent(a: ReadClass, b: ReadClass): boolean {
  return BY_URGENCY.indexOf(a) < BY_URGENCY.indexOf(b);
}

/** `ctx`, as alive as it is, with a deadline that is never later than `deadline`. */
export function withNearerDeadline(ctx: ReadContext, deadline: number): ReadContext {
  return derived(ctx, deadline, ctx.signal);
}

/** `ctx`, as alive as it is, with a signal of its own. */
export function withSignal(ctx: ReadContext, signal: AbortSignal): ReadContext {
  return derived(ctx, Number.POSITIVE_INFINITY, signal);
}

function derived(ctx: ReadContext, deadline: number, signal: AbortSignal | undefined): ReadContext {
  return {
    get class() {
      return ctx.class;
    },
    get deadline() {
      return Math.min(ctx.deadline, deadline);
    },
    ...(signal && { signal }),
    ...(ctx.drive !== undefined && { drive: ctx.drive }),
    ...(ctx.drives && { drives: ctx.drives }),
    ...(ctx.onPromote && { onPromote: (listener) => ctx.onPromote!(listener) }),
  };
}
