/** Runs other programs for the demo: their latest line is shown as progress, their last lines explain a failure. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import type { Readable } from 'node:stream';
import { text } from 'node:stream/consumers';

const TAIL_LENGTH_MAX = 4096;

export interface RunningProgram {
  readonly child: ChildProcess;
  readonly output: Readable;
  /** Rejects with the program's name, its exit code and its last lines, unless it ended well. */
  readonly ended: Promise<void>;
}

/** Starts `program`; the caller must read its output. `onLine` is called with its latest line whenever it prints. */
export function startProgram(
  program: string,
  args: readonly string[],
  onLine?: (line: string) => void,
): RunningProgram {
  // Debian's tools must not ask questions.
  const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'], env });
  let tail = '';
  const take = (bytes: Buffer) => {
    tail = (tail + bytes.toString('utf8')).slice(-TAIL_LENGTH_MAX);
    const line = tail.trimEnd().split('\n').at(-1);
    if (line) onLine?.(line);
  };
  if (onLine) child.stdout.on('data', take);
  child.stderr.on('data', take);
  const ended = once(child, 'close').then(([code, signal]) => {
    if (code !== 0)
      throw new Error(`${program} ${args[0] ?? ''} failed (${code ?? signal}):\n${tail.trimEnd()}`);
  });
  // A caller may await the output first: until then a rejection must not count as unhandled.
  ended.catch(() => {});
  return { child, output: child.stdout, ended };
}

/** Resolves with what the program wrote to standard output. */
export async function runProgram(
  program: string,
  args: readonly string[],
  options: { readonly onLine?: (line: string) => void } = {},
): Promise<string> {
  const { output, ended } = startProgram(program, args, options.onLine);
  const written = await text(output);
  await ended;
  return written;
}
