/** `lazydisk inspect IMAGE` */
import { Command } from 'commander';
import type { ImageDetail } from '../store/image-info.ts';
import { formatSize } from '../units.ts';
import {
  answer,
  clientOf,
  type JsonOptions,
  type RunDirOptions,
  type StoreOptions,
  usingKeys,
  withJson,
  withRunDir,
  withStore,
} from './context.ts';
import { list } from './table.ts';

type InspectOptions = JsonOptions & RunDirOptions & StoreOptions;

export function inspectCommand(): Command {
  return withJson(withRunDir(withStore(new Command('inspect'))))
    .description('show what an image is: its disk, its layers, its entrypoint and environment')
    .argument('<image>', 'NAME[:TAG] or sha256:…')
    .addHelpText(
      'after',
      `
Reads the store that --store names; without --store it asks the daemon. Everything but the digest is sealed, so
without a key "content" is null. JSON: name, digest, updated, content { sizeBytes, storedChunks, storedBytes, writer,
encoder, domain, saltEpoch, source, architecture, os, layers [digest, sizeBytes, chunks],
config { entrypoint, cmd, env, user, workingDir, labels } }.`,
    )
    .action(inspect);
}

async function inspect(image: string, options: InspectOptions): Promise<void> {
  answer(options, await findImage(image, options), describe);
}

async function findImage(image: string, options: InspectOptions): Promise<ImageDetail> {
  if (!options.store) return (await clientOf(options)).inspect(image);
  const { describeImage } = await import('../store/image-info.ts');
  return usingKeys(options, (store, keys) => describeImage(store, image, keys));
}

function describe(image: ImageDetail): string {
  const head: [string, string][] = [
    ['name', image.name],
    ['digest', image.digest],
    ['built', image.updated ?? '–'],
  ];
  const { content } = image;
  if (!content) return `${list(head)}What it holds is sealed: give --key to see it.\n`;
  const { config } = content;
  return list([
    ...head,
    ['disk', formatSize(content.sizeBytes)],
    ['stored', `${formatSize(content.storedBytes)} in ${content.storedChunks} chunks`],
    ['made by', `${content.writer}, ${content.encoder}`],
    ['domain', `${content.domain}, epoch ${content.saltEpoch}`],
    ['source', content.source],
    ['platform', `${content.os}/${content.architecture}`],
    [
      'layers',
      content.layers.map(
        (layer) => `${layer.digest}  ${formatSize(layer.sizeBytes)}, ${layer.chunks} chunks`,
      ),
    ],
    ['entrypoint', config.entrypoint.length > 0 ? JSON.stringify(config.entrypoint) : '–'],
    ['command', config.cmd.length > 0 ? JSON.stringify(config.cmd) : '–'],
    ['environment', config.env],
    ['user', config.user || '–'],
    ['directory', config.workingDir || '–'],
    ['labels', Object.entries(config.labels).map(([name, value]) => `${name}=${value}`)],
  ]);
}
