/**
 * Sizes and durations in human-readable form. Sizes are powers of 1024 throughout (`10G` is 10 GiB), as in QEMU and in
 * most disk tools; programs that need exact figures use `--json`.
 */
import { LazydiskError } from './errors.ts';

const SIZE = /^(\d{1,15})(?:\.(\d{1,3}))?\s?(?:([KMGTP])i?)?B?$/i;
const POWERS = { K: 1, M: 2, G: 3, T: 4, P: 5 } as const;

/** `512M`, `10G`, `1.5GiB`, `4096` → bytes. Throws USAGE. */
export function parseSize(text: string): number {
  const match = SIZE.exec(text.trim());
  const power = match?.[3] ? POWERS[match[3].toUpperCase() as keyof typeof POWERS] : 0;
  const bytes = match ? Number(`${match[1]}.${match[2] ?? 0}`) * 1024 ** power : Number.NaN;
  if (!Number.isFinite(bytes) || bytes > Number.MAX_SAFE_INTEGER || (power === 0 && match?.[2])) {
    throw new LazydiskError('USAGE', `size ${JSON.stringify(text)}: want something like 512M or 10G`);
  }
  return Math.round(bytes);
}

const DURATION = /^(\d{1,9})(?:\.(\d{1,3}))?\s?(ms|s|m|h|d)$/;
const DURATION_MS = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const;

/** `250ms`, `1.5s`, `2m`, `12h`, `7d` → milliseconds. Throws USAGE. */
export function parseDuration(text: string): number {
  const match = DURATION.exec(text.trim());
  if (!match) {
    throw new LazydiskError(
      'USAGE',
      `duration ${JSON.stringify(text)}: want something like 500ms, 10s, 2m, 12h or 7d`,
    );
  }
  const unit = DURATION_MS[match[3] as keyof typeof DURATION_MS];
  return Math.round(Number(`${match[1]}.${match[2] ?? 0}`) * unit);
}

/** `1%`, `0.5 %`, `100%` → a fraction of 1. Throws USAGE. */
export function parseShare(text: string): number {
  const match = /^(\d{1,3}(?:\.\d{1,6})?)\s?%$/.exec(text.trim());
  const share = match ? Number(match[1]) / 100 : Number.NaN;
  if (!(share <= 1))
    throw new LazydiskError('USAGE', `share ${JSON.stringify(text)}: want something like 1% or 100%`);
  return share;
}

/** `4000000` → 4000000. Throws USAGE for what is not a positive whole number. */
export function parseCount(text: string): number {
  const count = /^[0-9]{1,15}$/.test(text.trim()) ? Number(text) : 0;
  if (count === 0)
    throw new LazydiskError('USAGE', `count ${JSON.stringify(text)}: want a number of at least 1`);
  return count;
}

const SIZE_UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];

/** 1536 → `1.5 KiB`: three significant digits, so that columns stay narrow. */
export function formatSize(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (value >= 999.5 && unit < SIZE_UNITS.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${threeDigits(value, unit > 0)} ${SIZE_UNITS[unit]}`;
}

/** 0.4 → `0.4 ms`, 1500 → `1.5 s`, 125000 → `2 min 5 s`, a week → `7 d`. */
export function formatDuration(ms: number): string {
  if (ms < 999.5) return `${threeDigits(ms, true)} ms`;
  if (ms < 99_950) return `${threeDigits(ms / 1000, true)} s`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  const hours = Math.floor(seconds / 3600);
  if (hours < 24) return `${hours} h ${Math.floor((seconds % 3600) / 60)} min`;
  return hours % 24 === 0 ? `${hours / 24} d` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** A fraction of 1 → `6.4 %`. */
export function formatShare(share: number): string {
  if (!Number.isFinite(share)) return '–';
  return `${threeDigits(share * 100, true)} %`;
}

function threeDigits(value: number, fraction: boolean): string {
  if (!fraction || value >= 100) return value.toFixed(0);
  const text = value.toFixed(value >= 10 ? 1 : 2);
  return text.replace(/\.?0+$/, '');
}
