/** Shows the demo's steps, one line each, with its duration when it is done and, on a terminal, its progress. */
import { printable } from '../cli/table.ts';
import { formatDuration } from '../units.ts';

/** Progress appears only after this long. */
const QUIET_MS = 300;

export interface StepsOutput {
  readonly isTTY?: boolean;
  readonly columns?: number;
  write(text: string): unknown;
}

export class Steps {
  readonly #output: StepsOutput;

  constructor(output: StepsOutput) {
    this.#output = output;
  }

  /** Runs `work`, which may report progress. */
  async run<T>(title: string, work: (tell: (line: string) => void) => Promise<T>): Promise<T> {
    const startMs = performance.now();
    const clear = this.#output.isTTY ? '\r\x1b[K' : '';
    const tell = (line: string) => {
      if (!clear || performance.now() - startMs < QUIET_MS) return;
      const columns = (this.#output.columns ?? 80) - 1;
      this.#output.write(`${clear}${[...`  ${title}  ${printable(line)}`].slice(0, columns).join('')}`);
    };
    if (clear) this.#output.write(`  ${title}`);
    const result = await work(tell);
    const time = formatDuration(performance.now() - startMs);
    this.#output.write(`${clear}✓ ${title}  ${time}\n`);
    return result;
  }

  /** A line about the step that has just ended. */
  note(text: string): void {
    this.#output.write(`    ${text}\n`);
  }
}
