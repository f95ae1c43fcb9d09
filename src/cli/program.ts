/** The command line: its commands, and how what they throw becomes one line and an exit code. */
import { Command, CommanderError } from 'commander';
import { errorText } from '../errors.ts';
import { VERSION } from '../version.ts';
import { attachCommand } from './attach.ts';
import { bootCommand } from './boot.ts';
import { buildCommand } from './build.ts';
import { copyCommand } from './copy.ts';
import { detachCommand } from './detach.ts';
import { drivesCommand } from './drives.ts';
import { EXIT_CODES, exitCodeOf, exitCodesHelp } from './exit-codes.ts';
import { exportCommand } from './export.ts';
import { fleetCommand } from './fleet.ts';
import { fsckCommand } from './fsck.ts';
import { gcCommand } from './gc.ts';
import { imagesCommand } from './images.ts';
import { inspectCommand } from './inspect.ts';
import { keyCommand } from './key.ts';
import { rmCommand } from './rm.ts';
import { serveCommand } from './serve.ts';
import { statCommand } from './stat.ts';
import { statusCommand } from './status.ts';
import { printable } from './table.ts';
import { tagCommand } from './tag.ts';

const COMMANDS = [
  keyCommand,
  buildCommand,
  imagesCommand,
  inspectCommand,
  exportCommand,
  copyCommand,
  tagCommand,
  rmCommand,
  gcCommand,
  serveCommand,
  attachCommand,
  detachCommand,
  drivesCommand,
  statCommand,
  statusCommand,
  fleetCommand,
  fsckCommand,
  bootCommand,
];

/** The whole command line; `stop` is called by commands that end with an exit code of their own. */
export function createProgram(): Command {
  const program = new Command('lazydisk')
    .description('Root drives for microVMs that load only what the guest reads.')
    .version(VERSION)
    .showHelpAfterError(false)
    .addHelpText('after', () => `\n${exitCodesHelp()}\n\nLAZYDISK_DEBUG=1 adds stack traces to errors.`);
  for (const create of COMMANDS) program.addCommand(create());
  eachCommand(program, (command) => {
    command.exitOverride();
    command.configureOutput({ outputError: () => {} });
  });
  return program;
}

/** Runs `argv` (without node and script) and gives the exit code. Never rejects. */
export async function runCommandLine(argv: readonly string[]): Promise<number> {
  try {
    await createProgram().parseAsync(argv, { from: 'user' });
    // A command may have set one: boot passes the guest's on.
    return Number(process.exitCode ?? 0);
  } catch (error) {
    if (error instanceof CommanderError) {
      if (error.exitCode === 0) return 0;
      // Called with no command at all, commander has printed the help and calls it an error.
      if (error.code !== 'commander.help') report(error.message.replace(/^error: /, ''));
      return EXIT_CODES.USAGE;
    }
    report(errorText(error));
    if (process.env.LAZYDISK_DEBUG && error instanceof Error) process.stderr.write(`${stackOf(error)}\n`);
    return exitCodeOf(error);
  }
}

function report(message: string): void {
  process.stderr.write(`lazydisk: ${printable(message.replace(/\s*\n\s*/g, '; '))}\n`);
}

function stackOf(error: Error): string {
  const cause = error.cause instanceof Error ? `\ncaused by: ${stackOf(error.cause)}` : '';
  return `${error.stack ?? error.message}${cause}`;
}

function eachCommand(command: Command, visit: (command: Command) => void): void {
  visit(command);
  for (const child of command.commands) eachCommand(child, visit);
}
