/**
 * One line of progress on a terminal, for work that takes over a second: nothing before that, nothing when stderr
 * is no terminal, and no trace of it when the work is done.
 */
import { formatDuration, formatShare, formatSize } from '../units.ts';

const QUIET_MS = 1_000;
const REDRAW_MS = 200;

export interface ProgressState {
  readonly doneBytes: number;
  /** Where it is known. */
  readonly totalBytes?: number;
  /** What is being done now, a word or two. */
  readonly stage?: string;
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

  constructor(label: string, output: ProgressOutput = process.stderr) {
    this.#label = label;
    this.#output = output;
    if (output.isTTY) {
      this.#timer = setInterval(() => this.draw(performance.now()), REDRAW_MS);
      this.#timer.unref();
    }
  }

  /** Cheap: keeps the state, which the next redraw shows. */
  update(state: ProgressState): void {
    this.#state = state;
  }

  /** Takes the line away. */
  end(): void {
    clearInterval(this.#timer);
    if (this.#drawn) this.#output.write('\r\x1b[K');
    this.#drawn = false;
  }

  /** `nowMs` on the clock of performance.now(). */
  draw(nowMs: number): void {
    const elapsedMs = nowMs - this.#startedAt;
    if (elapsedMs < QUIET_MS) return;
    const text = progressLine(this.#label, this.#state, elapsedMs);
    this.#output.write(`\r${[...text].slice(0, (this.#output.columns ?? 80) - 1).join('')}\x1b[K`);
    this.#drawn = true;
  }
}

/** `build  42 %  1.2 GiB of 2.9 GiB  180 MiB/s  9.5 s left` */
export function progressLine(label: string, state: ProgressState, elapsedMs: number): string {
  const { doneBytes, totalBytes, stage } = state;
  const parts = [label];
  const bytesPerSecond = doneBytes / (elapsedMs / 1000);
  if (totalBytes !== undefined && totalBytes > 0) {
    parts.push(formatShare(Math.min(1, doneBytes / totalBytes)));
    parts.push(`${formatSize(doneBytes)} of ${formatSize(totalBytes)}`);
  } else {
    parts.push(formatSize(doneBytes));
  }
  parts.push(`${formatSize(bytesPerSecond)}/s`);
  if (totalBytes !== undefined && doneBytes > 0 && doneBytes < totalBytes) {
    parts.push(`${formatDuration(((totalBytes - doneBytes) / bytesPerSecond) * 1000)} left`);
  }
  if (stage) parts.push(stage);
  return parts.join('  ');
}
