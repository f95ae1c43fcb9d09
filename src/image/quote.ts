/** Byte strings (names, link targets) for people: as UTF-8 if they are valid, otherwise as latin1. */

const SHOWN_BYTES_MAX = 200;

/** `name` is a byte string (latin1); the result is quoted, on one line, and shortened if it is long. */
export function quote(name: string): string {
  const shown = name.length > SHOWN_BYTES_MAX ? name.slice(0, SHOWN_BYTES_MAX) : name;
  return JSON.stringify(textOf(shown)) + (name.length > SHOWN_BYTES_MAX ? `… (${name.length} bytes)` : '');
}

/** `name` is a byte string (latin1); the result is all of it, on one line, with control characters escaped. */
export function printable(name: string): string {
  return textOf(name).replace(
    /[\p{Cc}\p{Zl}\p{Zp}]/gu,
    (control) => `\\u${control.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
}

function textOf(name: string): string {
  const bytes = Buffer.from(name, 'latin1');
  const text = bytes.toString('utf8');
  return Buffer.from(text, 'utf8').equals(bytes) ? text : name;
}
