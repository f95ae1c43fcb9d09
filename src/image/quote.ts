/** Byte strings (names, link targets) shown to a person: as UTF-8 where they are, escaped where they are not. */

const SHOWN_BYTES_MAX = 200;

/** `name` is a byte string (latin1); the result is quoted, one line, and never long. */
export function quote(name: string): string {
  const shown = name.length > SHOWN_BYTES_MAX ? name.slice(0, SHOWN_BYTES_MAX) : name;
  const bytes = Buffer.from(shown, 'latin1');
  const text = bytes.toString('utf8');
  const safe = Buffer.from(text, 'utf8').equals(bytes) ? text : shown;
  return JSON.stringify(safe) + (name.length > SHOWN_BYTES_MAX ? `… (${name.length} bytes)` : '');
}
