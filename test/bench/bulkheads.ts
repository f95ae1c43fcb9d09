/**
 * How bad neighbours (test/support/neighbours.ts) affect sixteen drives: their reads beside the neighbours against the
 * same drives alone. Two rows show the effect of the processors: a neighbour that asks nothing of the daemon and uses
 * one or two processors. `node test/bench/bulkheads.ts`.
 */
import type { Test } from 'tap';
import type { BadNeighbour } from '../support/bad-neighbours.ts';
import { type Measured, Neighbourhood } from '../support/neighbours.ts';
import { formatRows, type Row } from './row.ts';

const READS_EACH = 200;
const PAUSE_MS = 10;

interface Beside {
  readonly name: string;
  readonly kinds: readonly BadNeighbour[];
  readonly goal?: number;
}

const NEIGHBOURS: readonly Beside[] = [
  { name: 'a process that only computes', kinds: ['burn'] },
  { name: 'hostile, hung, bad, slow', kinds: ['hostile', 'hung', 'bad', 'slow'], goal: 1.5 },
  { name: 'hung, bad, slow', kinds: ['hung', 'bad', 'slow'], goal: 1.5 },
  { name: 'NBD fuzzing', kinds: ['fuzz'], goal: 2 },
];

export async function benchBulkheads(): Promise<Row[]> {
  const teardowns: (() => unknown)[] = [];
  const t = { teardown: (close: () => unknown) => teardowns.push(close) } as unknown as Test;
  try {
    const neighbourhood = await Neighbourhood.open(t);
    await neighbourhood.measure(READS_EACH, 0);
    const rows: Row[] = [];
    for (const { name, kinds, goal } of NEIGHBOURS) {
      await neighbourhood.trouble();
      const alone = await measure(neighbourhood);
      await neighbourhood.trouble(...kinds);
      const beside = await measure(neighbourhood);
      for (const [what, key] of [
        ['p50', 'p50Ms'],
        ['p99', 'p99Ms'],
      ] as const) {
        const ours = beside[key];
        const peerValue = alone[key];
        const wanted = goal !== undefined && key === 'p99Ms' ? { goal, goalIsMost: true } : {};
        rows.push({
          name: `16 drives beside ${name}, ${what}`,
          ours,
          unit: 'ms',
          peer: 'alone',
          peerValue,
          ratio: ours / peerValue,
          ...wanted,
        });
      }
    }
    return rows;
  } finally {
    for (const close of teardowns.reverse()) await close();
  }
}

async function measure(neighbourhood: Neighbourhood): Promise<Measured> {
  const measured = await neighbourhood.measure(READS_EACH, PAUSE_MS);
  const { wrong, errors } = measured;
  if (wrong > 0 || errors.length > 0)
    throw new Error(`${wrong} wrong reads; ${errors.length} failed: ${errors[0]}`);
  return measured;
}

if (import.meta.main) process.stdout.write(formatRows(await benchBulkheads()));
