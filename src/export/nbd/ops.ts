/** Counters and current state of the NBD export, for metrics. */
import { COMMAND, type Request } from './protocol.ts';

export type NbdOp = 'read' | 'blockStatus' | 'cache' | 'flush' | 'other';

/** The name that a request is counted under. */
export function opOf({ type }: Request): NbdOp {
  if (type === COMMAND.read) return 'read';
  if (type === COMMAND.blockStatus) return 'blockStatus';
  if (type === COMMAND.cache) return 'cache';
  return type === COMMAND.flush ? 'flush' : 'other';
}

/** The clients of one listener, now and in total. */
export interface ListenerStats {
  readonly kind: 'unix' | 'tcp';
  readonly connections: number;
  readonly connectionsMax: number;
  /** Clients that were turned away or replaced another because the listener was full. */
  readonly refused: number;
}

export interface NbdStats {
  readonly connections: number;
  readonly listeners: readonly ListenerStats[];
  readonly inflight: number;
  /** Age of the oldest unanswered request; 0 if there is none. */
  readonly oldestInflightMs: number;
  readonly ops: Readonly<Record<NbdOp, number>>;
  readonly errors: number;
  /** Reads that got their bytes, and those that got an error. */
  readonly readsOk: number;
  readonly readErrors: number;
  readonly readBytes: number;
}

export class NbdCounters {
  readonly ops: Record<NbdOp, number> = { read: 0, blockStatus: 0, cache: 0, flush: 0, other: 0 };
  errors = 0;
  readsOk = 0;
  readErrors = 0;
  readBytes = 0;
  /** Requests that had to wait; those answered at once are never here. */
  readonly waiting = new Set<{ startedMs: number }>();

  oldestMs(): number {
    // A Set keeps insertion order, so the first is the oldest.
    for (const { startedMs } of this.waiting) return performance.now() - startedMs;
    return 0;
  }
}
