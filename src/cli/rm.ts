/** `lazydisk rm NAME…` */
import { Command } from 'commander';
import { errorText, LazydiskError } from '../errors.ts';
import { isDigest, referenceName } from '../store/reference-name.ts';
import type { RootStore } from '../store/roots/root-store.ts';
import type { ImageDigest, Reference } from '../store/store.ts';
import { formatDuration } from '../units.ts';
import { answer, type JsonOptions, storeOption, usingStore, withJson } from './context.ts';

interface RmOptions extends JsonOptions {
  readonly store?: string;
  readonly expected?: string;
  readonly dryRun?: boolean;
}

interface Removal {
  readonly removed: readonly { readonly name: string; readonly digest: string }[];
  /** Images that lost their last name. */
  readonly unnamed: readonly { readonly digest: string; readonly garbageAfter: string }[];
  readonly failures: readonly { readonly name: string; readonly code: string; readonly message: string }[];
}

export function rmCommand(): Command {
  return withJson(new Command('rm'))
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
code is that of the first that failed. JSON: removed [name, digest], unnamed [digest, garbageAfter],
failures [name, code, message].`,
    )
    .action(rm);
}

async function rm(names: string[], options: RmOptions): Promise<void> {
  const { dryRun = false, expected } = options;
  const fullNames = [...new Set(names.map(referenceName))];
  if (expected !== undefined && !isDigest(expected))
    throw new LazydiskError('USAGE', `--expected ${JSON.stringify(expected)}: want sha256:…`);
  const { removal, graceMs, failure } = await usingStore(options, (store) =>
    remove(store, fullNames, expected, dryRun),
  );
  answer(options, removal, () => describe(removal, graceMs, dryRun));
  if (failure) throw failure;
}

async function remove(
  store: RootStore,
  names: readonly string[],
  expected: ImageDigest | undefined,
  dryRun: boolean,
): Promise<{ removal: Removal; graceMs: number; failure: unknown }> {
  const writer = await store.writer();
  const { graceMs } = store.parts.policy;
  // Looked at before, since a listing may lag behind what is taken away now.
  const named = await store.listReferences();
  const removed: Reference[] = [];
  const failures: { name: string; error: unknown }[] = [];
  for (const name of names) {
    try {
      const reference = await store.getReference(name);
      if (!reference) throw new LazydiskError('NOT_FOUND', `no image ${name} in ${store.url}`);
      const { digest } = reference;
      if (expected !== undefined && expected !== digest)
        throw new LazydiskError('BUSY', `${name} is ${digest} and not ${expected}: it stays`);
      // What we say that it meant is what it means when it goes.
      if (!dryRun) await writer.removeReference(name, { expected: digest });
      removed.push(reference);
    } catch (error) {
      failures.push({ name, error });
    }
  }
  const gone = new Set(removed.map(({ name }) => name));
  const kept = new Set(named.filter(({ name }) => !gone.has(name)).map(({ digest }) => digest));
  const unnamed = new Set(removed.map(({ digest }) => digest).filter((digest) => !kept.has(digest)));
  const garbageAfter = new Date(Date.now() + graceMs).toISOString();
  const removal = {
    removed: removed.map(({ name, digest }) => ({ name, digest })),
    unnamed: [...unnamed].map((digest) => ({ digest, garbageAfter })),
    failures: failures.map(({ name, error }) => ({
      name,
      code: error instanceof LazydiskError ? error.code : 'INTERNAL',
      message: errorText(error),
    })),
  };
  return { removal, graceMs, failure: failures[0]?.error };
}

function describe({ removed, unnamed, failures }: Removal, graceMs: number, dryRun: boolean): string {
  const lines = removed.map(
    ({ name, digest }) => `${name} ${dryRun ? 'would go' : 'is gone'}; it was ${digest}`,
  );
  for (const { digest, garbageAfter } of unnamed)
    lines.push(`no name is left for ${digest}: garbage in ${formatDuration(graceMs)}, after ${garbageAfter}`);
  // The first is the command's own failure, and said as that.
  for (const { message } of failures.slice(1)) lines.push(`failed: ${message}`);
  return lines.map((line) => `${line}\n`).join('');
}
