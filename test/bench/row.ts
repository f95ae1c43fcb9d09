/** One row of a benchmark's table: our figure, a peer's in the same run, and the goal. */
export interface Row {
  name: string;
  ours: number;
  peer?: string;
  peerValue?: number;
  unit: string;
  /** ours / peerValue. */
  ratio?: number;
  /** The minimum for `ratio`; or, with `goalIsMost`, the maximum. */
  goal?: number;
  goalIsMost?: boolean;
}

/** The table as text, for a program that runs a single benchmark. */
export function formatRows(rows: readonly Row[]): string {
  const cells = rows.map((row) => [
    row.name,
    `${formatValue(row.ours)} ${row.unit}`,
    row.peer ? `${row.peer}: ${row.peerValue === undefined ? '-' : formatValue(row.peerValue)}` : '',
    row.ratio === undefined ? '' : `x ${row.ratio.toFixed(2)}`,
    row.goal === undefined ? '' : goalText(row, row.goal),
  ]);
  const widths = [0, 1, 2, 3, 4].map((column) => Math.max(...cells.map((line) => line[column]!.length)));
  const lines = cells.map((line) => line.map((cell, column) => cell.padEnd(widths[column]!)).join('  '));
  return `${lines.map((line) => line.trimEnd()).join('\n')}\n`;
}

function goalText({ ratio = 0, goalIsMost }: Row, goal: number): string {
  const isMet = goalIsMost ? ratio <= goal : ratio >= goal;
  return `goal ${goalIsMost ? '≤' : '≥'} ${goal} ${isMet ? 'met' : 'MISSED'}`;
}

function formatValue(value: number): string {
  return value >= 100 ? Math.round(value).toLocaleString('en') : value.toPrecision(3);
}
