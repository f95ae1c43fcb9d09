/** `lazydisk export IMAGE FILE` */
import { Command } from 'commander';
import type { ExportReport } from '../image/export.ts';
import { formatDuration, formatSize } from '../units.ts';
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

type ExportCommandOptions = JsonOptions & StoreOptions & RetryFlags;

interface Exported extends ExportReport {
  readonly name: string;
  readonly digest: string;
  readonly file: string;
}

export function exportCommand(): Command {
  return withRetry(withJson(withStore(new Command('export')), 'export'))
    .description("write an image's whole disk into a file, every chunk verified")
    .argument('<image>', 'NAME[:TAG] or sha256:…')
    .argument('<file>', 'a file, sparse where the disk is zero, or - for standard output')
    .addHelpText('after', '\nWith - as the file there is no JSON.')
    .action(exportDisk);
}

async function exportDisk(nameOrDigest: string, file: string, options: ExportCommandOptions): Promise<void> {
  requireKeys(options.key);
  const [{ loadImage }, { exportImage }] = await Promise.all([
    import('../store/image.ts'),
    import('../image/export.ts'),
  ]);
  const exported = await longWork(`export ${nameOrDigest}`, options, ({ signal, progress, patience }) =>
    usingKeys({ ...options, patience }, async (store, keys): Promise<Exported> => {
      const image = await loadImage(store, nameOrDigest, requireKeys(keys));
      const report = await exportImage({
        image,
        store,
        out: file,
        onProgress: ({ doneBytes, diskBytes }) => progress.update({ doneBytes, totalBytes: diskBytes }),
        signal,
      });
      return { name: image.name, digest: image.digest, file, ...report };
    }),
  );
  // Standard output carries the disk in this case.
  if (file === '-') return;
  answer(options, exported, (done) => {
    const what = `${formatSize(done.diskBytes)}, of which ${formatSize(done.dataBytes)} hold data`;
    return `${done.name} in ${done.file}: ${what}, in ${formatDuration(done.durationMs)}\n`;
  });
}
