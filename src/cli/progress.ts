/**
 * A progress line on a terminal for work that takes over a second: nothing before that, nothing if stderr is not a
 * terminal, and no trace of it when the work is done. While a store does not answer, that is shown instead; without a
 * terminal, a line reports an outage once it has lasted a while, and another line reports its end.
 */
import type { Outage } from '../async/patience.ts';
import { formatDuration, formatShare, formatSize } from '../units.ts';
import { printable } from './table.ts';

const QUIET_MS = 1_000;
const REDRAW_MS = 200;
/** Shorter outages are not logged. */
const OUTAGE_MS = 5_000;

/** How far the work has come: in bytes, or in items that `unit` names. */
export type ProgressState = (BytesDone | ThingsDone) & {
  /** The current step, in a word or two. */
  readonly stage?: string;
};

interface BytesDone {
  readonly doneBytes: number;
  /** If known. */
  readonly totalBytes?: number;
}

interface ThingsDone {
  readonly done: number;
  readonly total?: number;
  readonly unit: string;
}

export interface ProgressOutput {
  readonly isTTY?: boolean;
  readonly columns?: number;
  write(text: string): unknown;
}

export class Progress {
  readonly #label: string;
  readonly #output: ProgressOutput;
  readonly #startedAt = performance.now();
  readonly #timer: NodeJS.Timeout | undefined;
  #state: ProgressState = { doneBytes: 0 };
  #drawn = false;
  #outage: Outage | undefined;
  #isOutageTold = false;

  constructor(label: string, output: ProgressOutput = process.stderr) {
    this.#label = label;
    this.#output = output;
    if (output.isTTY) {
      this.#timer = setInterval(() => this.draw(performance.now()), REDRAW_MS);
      this.#timer.unref();
    }
  }

  /** Cheap: only keeps the state, which the next redraw shows. */
  update(state: ProgressState): void {
    this.#state = state;
  }

  /** The store, or the source that is read, does not answer, or (undefined) answers again. */
  outage(outage: Outage | undefined, nowMs = performance.now()): void {
    const before = this.#outage;
    this.#outage = outage;
    if (this.#output.isTTY) return;
    if (outage && !this.#isOutageTold && nowMs - outage.sinceMs >= OUTAGE_MS) {
      this.#isOutageTold = true;
      this.#output.write(`lazydisk: ${this.#label}: ${outageText(outage, nowMs)}\n`);
    }
    if (outage || !before || !this.#isOutageTold) return;
    this.#isOutageTold = false;
    const lastedMs = nowMs - before.sinceMs;
    this.#output.write(
      `lazydisk: ${this.#label}: the ${before.peer} answers again, after ${formatDuration(lastedMs)}\n`,
    );
  }

  /** Removes the line. */
  end(): void {
    clearInterval(this.#timer);
    if (this.#drawn) this.#output.write('\r\x1b[K');
    this.#drawn = false;
  }

  /** `nowMs` on the clock of performance.now(). */
  draw(nowMs: number): void {
    const elapsedMs = nowMs - this.#startedAt;
    if (elapsedMs < QUIET_MS) return;
    const text = this.#outage
      ? `${this.#label}  ${outageText(this.#outage, nowMs)}`
      : progressLine(this.#label, this.#state, elapsedMs);
    this.#output.write(`\r${[...text].slice(0, (this.#output.columns ?? 80) - 1).join('')}\x1b[K`);
    this.#drawn = true;
  }
}

/** `build  42 %  1.2 GiB of 2.9 GiB  180 MiB/s  9.5 s left` */
export function progressLine(label: string, state: ProgressState, elapsedMs: number): string {
  const [done, total, format] =
    'unit' in state
      ? [state.done, state.total, (value: number) => `${Math.round(value)} ${state.unit}`]
      : [state.doneBytes, state.totalBytes, formatSize];
  const parts = [label];
  const perSecond = done / (elapsedMs / 1000);
  if (total !== undefined && total > 0) {
    parts.push(formatShare(Math.min(1, done / total)));
    parts.push(`${format(done)} of ${format(total)}`);
  } else {
    parts.push(format(done));
  }
  parts.push(`${format(perSecond)}/s`);
  if (total !== undefined && done > 0 && done < total)
    parts.push(`${formatDuration(((total - done) / perSecond) * 1000)} left`);
  if (state.stage) parts.push(state.stage);
  return parts.join('  ');
}

/** `store unreachable for 40 s (connection refused), retrying until 14:05:10` */
export function outageText({ peer, sinceMs, untilMs, reason }: Outage, nowMs: number): string {
  const until = new Date(Date.now() + untilMs - nowMs).toTimeString().slice(0, 8);
  const lasted = formatDuration(Math.round((nowMs - sinceMs) / 1000) * 1000);
  return `${peer} unreachable for ${lasted} (${printable(reason)}), retrying until ${until}`;
}
