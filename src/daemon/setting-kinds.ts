/** The types of settings: how a value is written, in a file or on a command line, and what the daemon makes of it. */
import { resolve } from 'node:path';
import { LazydiskError } from '../errors.ts';
import { formatSize, parseDuration, parseSize } from '../units.ts';

export interface Kind<T> {
  /** The placeholder for a value in a command's help. */
  readonly sign: string;
  /** A description of the values for the table of settings: unit and bounds. */
  readonly values: string;
  /** Whether several values are allowed: a list in a file, a repeated flag. */
  readonly isList?: true;
  /** Whether it is one of a few words, which the flag's help names too. */
  readonly isChoice?: true;
  /** Parses text, or the type that TOML has for it. Throws USAGE, saying what was expected. */
  parse(written: unknown): T;
}

export interface Address {
  readonly host: string;
  readonly port: number;
}

export function text(sign: string): Kind<string> {
  return { sign, values: 'text', parse: nonEmptyText };
}

/** A path, made absolute. */
export function path(sign: 'dir' | 'file'): Kind<string> {
  return {
    sign,
    values: sign === 'dir' ? 'directory' : 'file',
    parse: (written) => resolve(nonEmptyText(written)),
  };
}

/** One text or a list of them. */
export function texts(sign: string): Kind<readonly string[]> {
  return {
    sign,
    values: 'text, or a list',
    isList: true,
    parse: (written) => {
      const list = [written].flat();
      if (list.length === 0) throw expected('at least one');
      return list.map(nonEmptyText);
    },
  };
}

export function oneOf<const T extends string>(sign: string, values: readonly T[]): Kind<T> {
  const list = `${values.slice(0, -1).join(', ')} or ${values.at(-1)}`;
  return {
    sign,
    values: list,
    isChoice: true,
    parse: (written) => {
      const value = values.find((one) => one === written);
      if (value === undefined) throw expected(list);
      return value;
    },
  };
}

/** Bytes: `512M`, or in a file also a number. */
export function size(minBytes = 0): Kind<number> {
  return {
    sign: 'size',
    values: minBytes > 0 ? `size, at least ${formatSize(minBytes)}` : 'size',
    parse: (written) => {
      const bytes = typeof written === 'number' ? written : parseSize(nonEmptyText(written));
      if (!Number.isSafeInteger(bytes) || bytes < minBytes)
        throw expected(`a size of at least ${minBytes} bytes`);
      return bytes;
    },
  };
}

/** Milliseconds: `250ms`, never a bare number. */
export const duration: Kind<number> = {
  sign: 'time',
  values: 'time',
  parse: (written) => parseDuration(nonEmptyText(written)),
};

export function count(min: number, max: number): Kind<number> {
  return {
    sign: 'n',
    values: `${min} to ${max}`,
    parse: (written) => {
      const value = numberOf(written);
      if (!Number.isInteger(value) || value < min || value > max)
        throw expected(`a whole number from ${min} to ${max}`);
      return value;
    },
  };
}

/** A rate per second. */
export function rate(max: number): Kind<number> {
  return {
    sign: 'n',
    values: `above 0, up to ${max}`,
    parse: (written) => {
      const value = numberOf(written);
      if (!(value > 0 && value <= max)) throw expected(`a number above 0, up to ${max}`);
      return value;
    },
  };
}

export const address: Kind<Address> = {
  sign: 'host:port',
  values: 'HOST:PORT',
  parse: (written) => parseAddress(nonEmptyText(written)),
};

/** `127.0.0.1:9100`, `[::1]:9100`, `localhost:0` → host and port. Throws USAGE. */
export function parseAddress(written: string): Address {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]\s]+)):(\d{1,5})$/.exec(written);
  const port = Number(match?.[3]);
  if (!match || port > 65535) {
    throw new LazydiskError('USAGE', `address ${JSON.stringify(written)}: want HOST:PORT`);
  }
  return { host: (match[1] ?? match[2])!, port };
}

/** The error does not quote the value, which might be a secret in the wrong place. */
function expected(what: string): LazydiskError {
  return new LazydiskError('USAGE', `want ${what}`);
}

function nonEmptyText(written: unknown): string {
  if (typeof written !== 'string' || written === '') throw expected('text');
  return written;
}

/** The value of a number, or of digits from a command line; otherwise NaN. */
function numberOf(written: unknown): number {
  if (typeof written === 'number') return written;
  return typeof written === 'string' && /^\d{1,9}(\.\d{1,9})?$/.test(written) ? Number(written) : Number.NaN;
}
