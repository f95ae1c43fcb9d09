/** Runs lazydisk as a user would: src/lazydisk, with the arguments that the demo also prints. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import type { Steps } from './steps.ts';

const LAZYDISK = 'src/lazydisk';
const START_TIMEOUT_MS = 30_000;

/** Runs a command with --json and returns its output; a guest's exit code does not count as a failure. */
export function lazydiskJson<T>(steps: Steps, words: readonly string[]): Promise<T> {
  return steps.run(asTyped(words), async () => {
    const child = spawn(LAZYDISK, [...words, '--json'], { stdio: ['ignore', 'pipe', 'pipe'] });
    let output = '';
    let complaint = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => (output += text));
    child.stderr.setEncoding('utf8').on('data', (text: string) => (complaint += text));
    const [code, signal] = (await once(child, 'close')) as [number | null, NodeJS.Signals | null];
    if (output === '')
      throw new Error(`lazydisk ${words[0]} exited (${code ?? signal}): ${complaint.trim()}`);
    return JSON.parse(output) as T;
  });
}

/** `lazydisk serve` in the background. */
export class ServedDaemon {
  readonly #child: ChildProcess;
  readonly #ended: Promise<unknown>;

  private constructor(child: ChildProcess) {
    this.#child = child;
    this.#ended = once(child, 'close');
  }

  /** Resolves when it serves. Rejects with its error output if it cannot. */
  static start(steps: Steps, flags: readonly string[]): Promise<ServedDaemon> {
    const words = ['serve', ...flags];
    return steps.run(`${asTyped(words)} &`, async () => {
      const child = spawn(LAZYDISK, words, { stdio: ['ignore', 'ignore', 'pipe'] });
      const daemon = new ServedDaemon(child);
      const late = setTimeout(() => child.kill('SIGKILL'), START_TIMEOUT_MS);
      let said = '';
      for await (const line of createInterface({ input: child.stderr! })) {
        said += `${line}\n`;
        if (!line.includes('"msg":"serving"')) continue;
        clearTimeout(late);
        // Later output is not shown, but must not fill the pipe.
        child.stderr!.resume();
        return daemon;
      }
      clearTimeout(late);
      throw new Error(`the daemon did not start: ${said.trim()}`);
    });
  }

  async stop(): Promise<void> {
    this.#child.kill('SIGTERM');
    await this.#ended;
  }
}

function asTyped(words: readonly string[]): string {
  const quoted = words.map((word) =>
    /^[\w./:=,@-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`,
  );
  return `lazydisk ${quoted.join(' ')}`;
}
