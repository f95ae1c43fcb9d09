/** The entry of `lazydisk`. A reader of stdout who leaves early (`lazydisk images | head`) is no error. */
import { VERSION } from './version.ts';

for (const stream of [process.stdout, process.stderr]) {
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error;
    process.exit(0);
  });
}

const words = process.argv.slice(2);
if (words.length === 1 && (words[0] === '--version' || words[0] === '-V')) {
  // Asked for by scripts, often: it takes nothing of the rest.
  process.stdout.write(`${VERSION}\n`);
} else {
  const { runCommandLine } = await import('./cli/program.ts');
  process.exitCode = await runCommandLine(words);
}
