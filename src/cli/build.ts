/** `lazydisk build SOURCE` */
import { Command } from 'commander';
import type { Patience } from '../async/patience.ts';
import type { BuildProgress, BuildReport } from '../image/build.ts';
import type { SourceOptions } from '../image/source/open-source.ts';
import { formatDuration, formatSize, parseCount, parseSize } from '../units.ts';
import {
  answer,
  type JsonOptions,
  longWork,
  type RetryFlags,
  requireKeys,
  type StoreOptions,
  usingKeys,
  withJson,
  withRetry,
  withStore,
} from './context.ts';
import type { ProgressState } from './progress.ts';
import { another } from './setting-option.ts';
import { list } from './table.ts';

interface BuildCommandOptions extends JsonOptions, StoreOptions, RetryFlags {
  readonly name: string;
  readonly platform?: string;
  readonly size?: string;
  readonly maxInput?: string;
  readonly maxEntries?: string;
  readonly registryCa?: string;
  readonly registryMirror?: readonly string[];
  readonly plainHttp?: boolean;
}

export function buildCommand(): Command {
  return withRetry(withJson(withStore(new Command('build')), 'build'))
    .description('flatten a container image into a disk and put its chunks into a store')
    .argument(
      '<source>',
      '[docker://][HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST], oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:NAME:TAG]',
    )
    .requiredOption('--name <name[:tag]>', 'what to call the image in the store (tag: latest)')
    .option('--platform <os/arch>', 'which platform of the source (default: this machine)')
    .option('--size <size>', 'size of the disk, as in 10G (default: content plus room, at least 1G)')
    .option(
      '--max-input <size>',
      'bytes that the layers may unpack to, and come to on the disk (default: 128G)',
    )
    .option(
      '--max-entries <number>',
      'entries that the layers may have, and names in the image (default: 2000000)',
    )
    .option('--registry-ca <file>', 'certificates (PEM) of authorities to trust besides the usual ones')
    .option(
      '--registry-mirror <registry=host[:port][/path]>',
      'where to ask before that registry, as in docker.io=mirror.example/hub; may be given again',
      another,
    )
    .option('--plain-http', 'ask registries by HTTP; those on loopback are if they do not speak TLS')
    .addHelpText(
      'after',
      `
Logins to registries are those of docker and podman: $REGISTRY_AUTH_FILE, else containers/auth.json in
$XDG_RUNTIME_DIR and ~/.config, and config.json in $DOCKER_CONFIG or ~/.docker, with credential helpers.
The store is made if it is not there. A build that was stopped and is run again stores only what is missing.`,
    )
    .action(build);
}

async function build(spec: string, options: BuildCommandOptions): Promise<void> {
  const sizeBytes = options.size === undefined ? undefined : parseSize(options.size);
  const inputBytes = options.maxInput === undefined ? undefined : parseSize(options.maxInput);
  const entries = options.maxEntries === undefined ? undefined : parseCount(options.maxEntries);
  requireKeys(options.key);
  const [{ openSource }, { buildImage }, { imageLimits }] = await Promise.all([
    import('../image/source/open-source.ts'),
    import('../image/build.ts'),
    import('../image/limits.ts'),
  ]);
  const limits = imageLimits({
    ...(inputBytes !== undefined && { inputBytes }),
    ...(entries !== undefined && { entries }),
  });
  const report = await longWork(`build ${options.name}`, options, async ({ signal, progress, patience }) => {
    const source = await openSource(spec, sourceOptions(options, patience));
    try {
      return await usingKeys({ ...options, create: true, patience }, async (store, keys) =>
        buildImage({
          source,
          store,
          key: await requireKeys(keys).primary(),
          name: options.name,
          ...(sizeBytes !== undefined && { sizeBytes }),
          limits,
          onProgress: (state) => progress.update(progressOf(state)),
          signal,
        }),
      );
    } finally {
      await source.close();
    }
  });
  answer(options, report, describe);
}

function sourceOptions(options: BuildCommandOptions, patience: Patience): SourceOptions {
  const { platform, registryCa, registryMirror, plainHttp } = options;
  return {
    ...(platform !== undefined && { platform }),
    registry: {
      patience,
      ...(registryCa !== undefined && { caFile: registryCa }),
      ...(registryMirror && { mirrors: registryMirror }),
      ...(plainHttp && { isPlainHttp: true }),
    },
  };
}

function progressOf(state: BuildProgress): ProgressState {
  const unpacked = `${formatSize(state.unpackedBytes)} unpacked, ${state.entries} entries`;
  const stage =
    state.phase === 'layers' ? `layer ${state.layer} of ${state.layers}  ${unpacked}` : state.phase;
  return { doneBytes: state.inputBytes, totalBytes: state.totalInputBytes, stage };
}

function describe(report: BuildReport): string {
  const { storedChunks, newChunks } = report;
  return list([
    ['name', report.name],
    ['digest', report.digest],
    ['layers', `${report.layers}, ${formatSize(report.inputBytes)}`],
    ['disk', `${formatSize(report.diskBytes)}, of which ${formatSize(report.dataBytes)} hold data`],
    ['stored', `${formatSize(report.sealedBytes)} in ${storedChunks} chunks`],
    ['new', `${formatSize(report.newBytes)} in ${newChunks} chunks`],
    ['time', formatDuration(report.durationMs)],
  ]);
}
