/** `lazydisk key new`, `key list` and `key rewrap`. */
import { Command, Option } from 'commander';
import { LazydiskError } from '../errors.ts';
import type { NewKeyOptions, TenantKey } from '../format/keys.ts';
import type { WrappedKey } from '../format/wrapped-key.ts';
import type { RewrapReport } from '../store/rewrap.ts';
import type { RootStore } from '../store/roots/root-store.ts';
import {
  answer,
  type JsonOptions,
  longWork,
  openKeys,
  type RetryFlags,
  storeOption,
  usingStore,
  withJson,
  withRetry,
} from './context.ts';
import { list, minute, table } from './table.ts';

/** The prefix of keys that a store keeps wrapped. */
const WRAPPED = 'awskms:';

interface StoreOption {
  readonly store?: string;
}

interface KeyNewOptions extends JsonOptions, StoreOption {
  readonly domain?: string;
  readonly sharing?: string;
}

interface RewrapOptions extends JsonOptions, StoreOption, RetryFlags {
  readonly from: string;
  readonly to: string;
  readonly all?: boolean;
  readonly removeOld?: boolean;
  readonly reseal?: boolean;
  readonly dryRun?: boolean;
}

export function keyCommand(): Command {
  return new Command('key')
    .description('make tenant keys, and seal images for others')
    .addCommand(newCommand())
    .addCommand(listCommand())
    .addCommand(rewrapCommand());
}

function newCommand(): Command {
  const sharing = 'join the dedup domain of this key: images under the two share chunks';
  return withJson(new Command('new'), 'key new')
    .description(
      'make a new tenant key: in a file that only its owner can read, or wrapped by a key of AWS KMS',
    )
    .argument('<key>', 'FILE, which must not exist, or awskms:ARN')
    .option('--domain <name>', 'name of the dedup domain that images under this key share chunks in')
    .addOption(new Option('--sharing <key>', sharing).conflicts('domain'))
    .addOption(storeOption())
    .addHelpText(
      'after',
      `
Whoever loses the key loses the images built with it. One that KMS wraps is kept in the store that --store names,
which is made if it is not there. --sharing takes FILE, awskms:ARN (its newest key) or awskms:ARN#ID.`,
    )
    .action(keyNew);
}

async function keyNew(target: string, options: KeyNewOptions): Promise<void> {
  const { parseKeySpec } = await import('../keys/key-spec.ts');
  const spec = parseKeySpec(target);
  if (spec.kind === 'file') {
    const { id, domain } = await newInFile(spec.path, options);
    answer(options, { file: spec.path, id, domain }, () => `key ${id} in ${spec.path}\n`);
  } else {
    const { id, domain, keyArn: arn } = await newInStore(spec.arn, options);
    answer(options, { arn, id, domain }, () => `key ${id}, wrapped by ${arn}\n`);
  }
}

async function newInFile(path: string, options: KeyNewOptions): Promise<TenantKey> {
  const { newKeyFile } = await import('../keys/key-file.ts');
  const make = async (store?: RootStore) => newKeyFile(path, await newKeyOptions(options, store));
  return options.sharing?.startsWith(WRAPPED) ? usingStore(options, make) : make();
}

/** Creates the store if necessary: its first key comes before its first image. */
async function newInStore(arn: string, options: KeyNewOptions): Promise<WrappedKey> {
  const [{ newWrappedKey }, { AwsKms }] = await Promise.all([
    import('../keys/wrapped-keys.ts'),
    import('../keys/kms.ts'),
  ]);
  const kms = new AwsKms();
  try {
    return await usingStore({ ...options, create: true }, async (store) =>
      newWrappedKey(store, kms, arn, await newKeyOptions(options, store)),
    );
  } finally {
    kms.close();
  }
}

async function newKeyOptions(options: KeyNewOptions, store?: RootStore): Promise<NewKeyOptions> {
  if (options.sharing !== undefined) return { sharing: await onlyKey(options.sharing, store) };
  return options.domain === undefined ? {} : { domain: options.domain };
}

/** The key that FILE, `awskms:ARN` (its newest key) or `awskms:ARN#ID` names. Throws USAGE, KEY, UNAVAILABLE. */
async function onlyKey(text: string, store: RootStore | undefined): Promise<TenantKey> {
  // A file name may contain a #.
  const hash = text.startsWith(WRAPPED) ? text.indexOf('#') : -1;
  const spec = hash === -1 ? text : text.slice(0, hash);
  const ring = await openKeys([spec], store);
  try {
    if (hash === -1) return await ring.primary();
    const id = text.slice(hash + 1);
    const key = await ring.get(id);
    if (!key) throw new LazydiskError('KEY', `${spec} has no key ${id}`);
    return key;
  } finally {
    ring.close();
  }
}

function listCommand(): Command {
  return withJson(new Command('list'), 'key list')
    .description('list the keys that a store keeps wrapped by KMS')
    .addOption(storeOption())
    .action(keyList);
}

async function keyList(options: JsonOptions & StoreOption): Promise<void> {
  const { listWrappedKeys } = await import('../keys/wrapped-keys.ts');
  const listed = await usingStore(options, (store) => listWrappedKeys(store));
  const keys = listed.map(({ id, key, problem }) => ({
    id,
    domain: key?.domain ?? null,
    keyArn: key?.keyArn ?? null,
    aliasArn: key?.aliasArn ?? null,
    created: key?.created ?? null,
    problem: problem ?? null,
  }));
  answer(options, keys, (rows) => {
    if (rows.length === 0) return 'no keys\n';
    const columns = ['id', 'domain', 'created', 'wrapped by', ''].map((title) => ({ title }));
    return table(
      columns,
      rows.map(({ id, domain, created, keyArn, problem }) => [
        ...[id, domain ?? '–', minute(created), keyArn ?? '–', problem ?? ''],
      ]),
    );
  });
}

function rewrapCommand(): Command {
  return withRetry(withJson(new Command('rewrap'), 'key rewrap'))
    .description('seal images for another key of their domain, without touching a chunk')
    .argument('[image...]', 'NAME[:TAG] or sha256:…; or --all')
    .requiredOption('--from <key>', 'the key that opens them now: FILE, awskms:ARN or awskms:ARN#ID')
    .requiredOption('--to <key>', 'the key that shall open them')
    .option('--all', 'all images that have a name')
    .option('--remove-old', 'then take away what the old key opens')
    .option('--reseal', 'seal them under new data keys; --to may be the same key as --from')
    .option('--dry-run', 'change nothing, and say what would be')
    .addOption(storeOption())
    .addHelpText(
      'after',
      `
Can be stopped at any moment and run again. Drives that are attached go on. To change a key everywhere: make one with
\`key new --sharing OLD\`, rewrap --all, give hosts the new key, build with it, rewrap --all --remove-old.
A rewrap keeps an image's data key: whoever had any key that opened the image may know it, and then opens every manifest that
is sealed under it, whichever key wraps it. --reseal makes a new one, so that what they know opens, and forges, nothing that
is in this store from then on: no older manifest for the new key stays, with --remove-old none for the old one. Of other
keys it cannot write the manifests; those that are still under the data key before are listed, for their owners to reseal.
Chunks stay as they are: what somebody could read, they can read on while it is in the store.
In JSON, "sharingKeys" are ids of keys.`,
    )
    .action(keyRewrap);
}

async function keyRewrap(images: string[], options: RewrapOptions): Promise<void> {
  const { all = false, removeOld = false, reseal = false, dryRun = false } = options;
  if (all === images.length > 0) throw new LazydiskError('USAGE', 'rewrap: name images, or give --all');
  const { rewrapImages } = await import('../store/rewrap.ts');
  const report = await longWork('rewrap', options, ({ signal, progress, patience }) =>
    usingStore({ ...options, patience }, async (store) => {
      const from = await onlyKey(options.from, store);
      const to = await onlyKey(options.to, store);
      return rewrapImages(store, from, to, {
        ...(!all && { images }),
        removeOld,
        reseal,
        dryRun,
        signal,
        onProgress: (done, total) => progress.update({ done, total, unit: 'images' }),
      });
    }),
  );
  const failures = report.failures.map(({ name, error: { code, message } }) => ({ name, code, message }));
  answer(options, { ...report, failures }, () => describe(report, dryRun));
  if (report.failures[0]) throw report.failures[0].error;
}

function describe(report: RewrapReport, dryRun: boolean): string {
  const messages = report.failures.map(({ error }) => error.message);
  const sharing = report.sharingKeys.map((id) => `key ${id} has manifests under a data key from before`);
  return list([
    ['images', `${report.images}`],
    [dryRun ? 'would seal anew' : 'sealed anew', `${report.rewrapped}`],
    ['already so', `${report.skipped}`],
    ['of other keys', `${report.foreign}`],
    [dryRun ? 'would remove' : 'removed', `${report.removed} of the old key`],
    ...(sharing.length > 0 ? [['not resealed', sharing] as [string, string[]]] : []),
    // The first failure is the command's own error and is reported as such.
    ['failed', [`${messages.length}`, ...messages.slice(1)]],
  ]);
}
