/** The command line: its commands, and how their errors become one line and an exit code. */
import { Command, CommanderError } from 'commander';
import { errorText } from '../errors.ts';
import { VERSION } from '../version.ts';
import { EXIT_CODES, exitCodeOf, exitCodesHelp } from './exit-codes.ts';
import { printable } from './table.ts';

/** The commands, in the order of the help, each in its own file that is loaded when the command is called. */
const COMMANDS: Readonly<Record<string, () => Promise<Command>>> = {
  key: async () => (await import('./key.ts')).keyCommand(),
  build: async () => (await import('./build.ts')).buildCommand(),
  images: async () => (await import('./images.ts')).imagesCommand(),
  inspect: async () => (await import('./inspect.ts')).inspectCommand(),
  diff: async () => (await import('./diff.ts')).diffCommand(),
  export: async () => (await import('./export.ts')).exportCommand(),
  copy: async () => (await import('./copy.ts')).copyCommand(),
  tag: async () => (await import('./tag.ts')).tagCommand(),
  rm: async () => (await import('./rm.ts')).rmCommand(),
  gc: async () => (await import('./gc.ts')).gcCommand(),
  serve: async () => (await import('./serve.ts')).serveCommand(),
  attach: async () => (await import('./attach.ts')).attachCommand(),
  detach: async () => (await import('./detach.ts')).detachCommand(),
  drives: async () => (await import('./drives.ts')).drivesCommand(),
  stat: async () => (await import('./stat.ts')).statCommand(),
  status: async () => (await import('./status.ts')).statusCommand(),
  fleet: async () => (await import('./fleet.ts')).fleetCommand(),
  fsck: async () => (await import('./fsck.ts')).fsckCommand(),
  boot: async () => (await import('./boot.ts')).bootCommand(),
};

/** Builds as much of the command line as `argv` needs: the command it calls, or all commands for help. */
export async function createProgram(argv: readonly string[]): Promise<Command> {
  const program = new Command('lazydisk')
    .description('Root drives for microVMs that load only what the guest reads.')
    .version(VERSION)
    .showHelpAfterError(false)
    .addHelpText('after', () => `\n${exitCodesHelp()}\n\nLAZYDISK_DEBUG=1 adds stack traces to errors.`);
  const called = Object.hasOwn(COMMANDS, argv[0] ?? '') ? COMMANDS[argv[0]!] : undefined;
  for (const create of called ? [called] : Object.values(COMMANDS)) program.addCommand(await create());
  eachCommand(program, (command) => {
    command.exitOverride();
    command.configureOutput({ outputError: () => {} });
  });
  return program;
}

/** Runs `argv` (without node and script) and returns the exit code. Never rejects. */
export async function runCommandLine(argv: readonly string[]): Promise<number> {
  try {
    await (await createProgram(argv)).parseAsync(argv, { from: 'user' });
    // A command may have set an exit code: boot passes on the guest's.
    return Number(process.exitCode ?? 0);
  } catch (error) {
    if (error instanceof CommanderError) {
      if (error.exitCode === 0) return 0;
      // If called without a command, commander prints the help and reports an error.
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
