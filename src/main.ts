/** The entry point of `lazydisk`. It is not an error if the reader of stdout exits early (`lazydisk images | head`). */
import { VERSION } from './version.ts';

for (const stream of [process.stdout, process.stderr]) {
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error;
    process.exit(0);
  });
}

const words = process.argv.slice(2);
if (words.length === 1 && (words[0] === '--version' || words[0] === '-V')) {
  // Scripts call this often, so it loads nothing else.
  process.stdout.write(`${VERSION}\n`);
} else {
  const { runCommandLine } = await import('./cli/program.ts');
  process.exitCode = await runCommandLine(words);
}
