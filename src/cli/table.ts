/** Tables and lists for people: columns as wide as their widest cell, numbers right-aligned, no frames. */

export interface Column {
  readonly title: string;
  readonly align?: 'left' | 'right';
}

/** Returns lines that each end with a newline, the header first. Cells must not contain newlines. */
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

/** Returns `name   value` lines with aligned values; the further lines of a value are indented below its first. */
export function list(entries: readonly (readonly [string, string | readonly string[]])[]): string {
  const width = Math.max(...entries.map(([name]) => displayWidth(name)));
  return entries
    .flatMap(([name, value]) => {
      const values = typeof value === 'string' ? [value] : value.length > 0 ? value : ['–'];
      return values.map((text, at) => `${(at === 0 ? name : '').padEnd(width)}  ${printable(text)}\n`);
    })
    .join('');
}

/** An ISO time to the minute, in UTC; a dash for null. */
export function minute(time: string | null): string {
  return time === null ? '–' : time.slice(0, 16).replace('T', ' ');
}

/** Escapes control characters: text from elsewhere (an image's labels, a file name) must not control the terminal. */
export function printable(text: string): string {
  return text.replace(/\p{Cc}/gu, (char) => `\\x${char.charCodeAt(0).toString(16).padStart(2, '0')}`);
}

function displayWidth(text: string): number {
  return [...printable(text)].length;
}
