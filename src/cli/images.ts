/** `lazydisk images` */
import { Command } from 'commander';
import type { ImageInfo } from '../daemon/api.ts';
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
import { table } from './table.ts';

type ImagesOptions = JsonOptions & RunDirOptions & StoreOptions;

export function imagesCommand(): Command {
  return withJson(withRunDir(withStore(new Command('images'))))
    .description('list the images of a store')
    .addHelpText(
      'after',
      `
Reads the store that --store names, with sizes if there is a key; without --store it asks the daemon.
JSON: an array of name, digest, updated, sizeBytes, storedChunks, storedBytes, problem.`,
    )
    .action(images);
}

async function images(options: ImagesOptions): Promise<void> {
  answer(options, await findImages(options), (found) => {
    if (found.length === 0) return 'no images\n';
    const columns = [
      { title: 'name' },
      { title: 'digest' },
      { title: 'disk', align: 'right' },
      { title: 'stored', align: 'right' },
      { title: 'built' },
      { title: '' },
    ] as const;
    return table(columns, found.map(row));
  });
}

async function findImages(options: ImagesOptions): Promise<ImageInfo[]> {
  if (!options.store) return clientOf(options).images();
  const { describeImages } = await import('../daemon/image-info.ts');
  return usingKeys(options, (store, keys) => describeImages(store, keys));
}

function row(image: ImageInfo): string[] {
  const size = (bytes: number | null) => (bytes === null ? '–' : formatSize(bytes));
  const built = image.updated.slice(0, 16).replace('T', ' ');
  const digest = image.digest.slice(0, 'sha256:'.length + 12);
  return [image.name, digest, size(image.sizeBytes), size(image.storedBytes), built, image.problem ?? ''];
}
