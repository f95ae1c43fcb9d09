/** `lazydisk rm NAME…` */
import { Command } from 'commander';
import { codeOf, errorText, LazydiskError } from '../errors.ts';
import { isDigest } from '../format/image-digest.ts';
import { referenceName } from '../store/reference-name.ts';
import type { RemoveReport } from '../store/remove.ts';
import { formatDuration } from '../units.ts';
import { answer, type JsonOptions, storeOption, usingStore, withJson } from './context.ts';

interface RmOptions extends JsonOptions {
  readonly store?: string;
  readonly expected?: string;
  readonly dryRun?: boolean;
}

export function rmCommand(): Command {
  return withJson(new Command('rm'), 'rm')
    .description('take names of images away')
    .argument('<name...>', 'NAME[:TAG]')
    .addOption(storeOption())
    .option('--expected <digest>', 'only names that mean this image now')
    .option('--dry-run', 'change nothing, and say what would be taken away')
    .addHelpText(
      'after',
      `
Only names go, and drives that are attached go on. An image without a name is garbage after the store's grace period
(\`lazydisk gc policy\`); until it is deleted, \`lazydisk tag sha256:… NAME\` brings it back. All names are tried; the exit
code is that of the first that failed.`,
    )
    .action(rm);
}

async function rm(names: string[], options: RmOptions): Promise<void> {
  const { dryRun = false, expected } = options;
  const fullNames = [...new Set(names.map(referenceName))];
  if (expected !== undefined && !isDigest(expected))
    throw new LazydiskError('USAGE', `--expected ${JSON.stringify(expected)}: want sha256:…`);
  const { removeNames } = await import('../store/remove.ts');
  const report = await usingStore(options, (store) => removeNames(store, fullNames, { expected, dryRun }));
  const garbageAfter = new Date(Date.now() + report.graceMs).toISOString();
  const answered = {
    removed: report.removed.map(({ name, digest }) => ({ name, digest })),
    unnamed: report.unnamed.map((digest) => ({ digest, garbageAfter })),
    failures: report.failures.map(({ name, error }) => ({
      name,
      code: codeOf(error),
      message: errorText(error),
    })),
  };
  answer(options, answered, () => describe(report, garbageAfter, dryRun));
  if (report.failures[0]) throw report.failures[0].error;
}

function describe(report: RemoveReport, garbageAfter: string, dryRun: boolean): string {
  const { removed, unnamed, graceMs, failures } = report;
  const lines = removed.map(
    ({ name, digest }) => `${name} ${dryRun ? 'would go' : 'is gone'}; it was ${digest}`,
  );
  for (const digest of unnamed)
    lines.push(`no name is left for ${digest}: garbage in ${formatDuration(graceMs)}, after ${garbageAfter}`);
  // The first failure is the command's own error and is reported as such.
  for (const { error } of failures.slice(1)) lines.push(`failed: ${errorText(error)}`);
  return lines.map((line) => `${line}\n`).join('');
}
