/** The entry of `lazydisk`. A reader of stdout who leaves early (`lazydisk images | head`) is no error. */
import { runCommandLine } from './cli/program.ts';

for (const stream of [process.stdout, process.stderr]) {
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error;
    process.exit(0);
  });
}

process.exitCode = await runCommandLine(process.argv.slice(2));
