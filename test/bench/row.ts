/** One line of the benchmark's table: what we measured, what a peer did in the same run, and what we want. */
export interface Row {
  name: string;
  ours: number;
  peer?: string;
  peerValue?: number;
  unit: string;
  /** ours / peerValue. */
  ratio?: number;
  /** The least that `ratio` should be. */
  goal?: number;
}

/** The table as text, for a program that runs one benchmark alone. */
export function formatRows(rows: readonly Row[]): string {
  const cells = rows.map((row) => [
    row.name,
    `${formatValue(row.ours)} ${row.unit}`,
    row.peer ? `${row.peer}: ${row.peerValue === undefined ? '-' : formatValue(row.peerValue)}` : '',
    row.ratio === undefined ? '' : `x ${row.ratio.toFixed(2)}`,
    row.goal === undefined ? '' : `goal ${row.goal} ${(row.ratio ?? 0) >= row.goal ? 'met' : 'MISSED'}`,
  ]);
  const widths = [0, 1, 2, 3, 4].map((column) => Math.max(...cells.map((line) => line[column]!.length)));
  const lines = cells.map((line) => line.map((cell, column) => cell.padEnd(widths[column]!)).join('  '));
  return `${lines.map((line) => line.trimEnd()).join('\n')}\n`;
}

function formatValue(value: number): string {
  return value >= 100 ? Math.round(value).toLocaleString('en') : value.toPrecision(3);
}
