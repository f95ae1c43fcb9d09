/** Tables and lists for people: columns as wide as their widest cell, numbers to the right, no frames. */

export interface Column {
  readonly title: string;
  readonly align?: 'left' | 'right';
}

/** Lines, each ended by a newline; a header first. Cells must not hold newlines. */
export function table(columns: readonly Column[], rows: readonly (readonly string[])[]): string {
  const titles = columns.map((column) => column.title.toUpperCase());
  const lines = [titles, ...rows];
  const widths = columns.map((_, at) => Math.max(...lines.map((cells) => displayWidth(cells[at] ?? ''))));
  return lines
    .map((cells) => {
      const padded = columns.map(({ align }, at) => {
        const cell = printable(cells[at] ?? '');
        const gap = ' '.repeat(widths[at]! - displayWidth(cell));
        return align === 'right' ? gap + cell : cell + gap;
      });
      return `${padded.join('  ').trimEnd()}\n`;
    })
    .join('');
}

/** `name   value` lines, the values in one column; a value of several lines goes on below itself. */
export function list(entries: readonly (readonly [string, string | readonly string[]])[]): string {
  const width = Math.max(...entries.map(([name]) => displayWidth(name)));
  return entries
    .flatMap(([name, value]) => {
      const values = typeof value === 'string' ? [value] : value.length > 0 ? value : ['–'];
      return values.map((text, at) => `${(at === 0 ? name : '').padEnd(width)}  ${printable(text)}\n`);
    })
    .join('');
}

/** Text from elsewhere (an image's labels, a file name) must not drive the terminal. */
export function printable(text: string): string {
  return text.replace(/\p{Cc}/gu, (char) => `\\x${char.charCodeAt(0).toString(16).padStart(2, '0')}`);
}

function displayWidth(text: string): number {
  return [...printable(text)].length;
}
