/** What a connection shares with all others of its server. */
import type { ByteBudget } from '../byte-budget.ts';
import type { TurnBudget } from '../turn-budget.ts';
import { type NbdLimits, shareOf } from './limits.ts';
import type { NbdCounters } from './ops.ts';
import type { BatchPool } from './reply-writer.ts';

export interface ConnectionContext {
  readonly counters: NbdCounters;
  readonly limits: NbdLimits;
  readonly pool: BatchPool;
  readonly budget: ByteBudget;
  readonly turn: TurnBudget;
  /** The current number of clients. */
  connections(): number;
}

/** How many bytes of answers one client may leave untaken at present; see NbdLimits. */
export function unsentBytesMax(context: ConnectionContext): number {
  return shareOf(context.limits.unsentBytesMax, context.connections(), context.limits);
}
