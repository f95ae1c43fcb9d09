/** What travels with a read through every queue and wait: how urgent it is, for which drives, and until when. */

/** Why something is being read. Demand goes before readahead, and readahead before prefetch. */
export type ReadClass = 'demand' | 'readahead' | 'prefetch';

/**
 * A live object: when a more urgent caller joins a read in flight, `class` and `deadline` move up and `drives` grows.
 * Code that queues or waits must read the fields when it needs them, and must not copy them.
 */
export interface ReadContext {
  readonly class: ReadClass;
  /** On the clock of `performance.now()`, milliseconds. */
  readonly deadline: number;
  readonly signal?: AbortSignal;
  /** The drive that reads: for error texts, for its share of what all drives use, and for blaming failures on it. */
  readonly drive?: string;
  /** All drives that wait for the read, `drive` first; undefined where that is the only one. */
  readonly drives?: ReadonlySet<string>;
  /** Calls `listener` when `class` or `drives` has changed, until the returned function is called. For queues. */
  onPromote?(listener: () => void): () => void;
}

/** The classes, most urgent first. */
export const BY_URGENCY: readonly ReadClass[] = ['demand', 'readahead', 'prefetch'];

/** Whether `a` goes before `b`. */
export function isMoreUrgent(a: ReadClass, b: ReadClass): boolean {
  return BY_URGENCY.indexOf(a) < BY_URGENCY.indexOf(b);
}

/** A live view of `ctx` whose deadline is never later than `deadline`. */
export function withNearerDeadline(ctx: ReadContext, deadline: number): ReadContext {
  return derived(ctx, deadline, ctx.signal);
}

/** A live view of `ctx` with another signal. */
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
