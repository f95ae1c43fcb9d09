/**
 * What sixteen drives feel of neighbours that are not well (test/support/neighbours.ts): the 99th percentile of their
 * reads beside them, against the same drives alone. `node test/bench/bulkheads.ts`.
 */
import type { Test } from 'tap';
import { Neighbourhood } from '../support/neighbours.ts';
import { formatRows, type Row } from './row.ts';

const READS_EACH = 200;
const PAUSE_MS = 10;

export async function benchBulkheads(): Promise<Row[]> {
  const teardowns: (() => unknown)[] = [];
  const t = { teardown: (close: () => unknown) => teardowns.push(close) } as unknown as Test;
  try {
    const neighbourhood = await Neighbourhood.open(t);
    await neighbourhood.measure(READS_EACH, 0);
    const alone = await neighbourhood.measure(READS_EACH, PAUSE_MS);
    await neighbourhood.trouble();
    const beside = await neighbourhood.measure(READS_EACH, PAUSE_MS);
    if (beside.wrong > 0 || beside.errors.length > 0)
      throw new Error(`${beside.wrong} wrong reads; ${beside.errors.length} failed: ${beside.errors[0]}`);
    const row = (name: string, ours: number, peerValue: number): Row => ({
      ...{ name, ours, unit: 'ms', peer: 'alone', peerValue, ratio: ours / peerValue },
      ...{ goal: 1.5, goalIsMost: true },
    });
    return [
      row('16 drives beside bad neighbours, p50', beside.p50Ms, alone.p50Ms),
      row('16 drives beside bad neighbours, p99', beside.p99Ms, alone.p99Ms),
    ];
  } finally {
    for (const close of teardowns.reverse()) await close();
  }
}

if (import.meta.main) process.stdout.write(formatRows(await benchBulkheads()));
