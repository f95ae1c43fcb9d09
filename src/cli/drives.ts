/** `lazydisk drives` */
import { Command } from 'commander';
import { formatSize } from '../units.ts';
import { answer, clientOf, type JsonOptions, type RunDirOptions, withJson, withRunDir } from './context.ts';
import { table } from './table.ts';

export function drivesCommand(): Command {
  return withJson(withRunDir(new Command('drives')), 'drives')
    .description('list the drives that are attached')
    .action(drives);
}

async function drives(options: JsonOptions & RunDirOptions): Promise<void> {
  answer(options, await (await clientOf(options)).drives(), (attached) => {
    if (attached.length === 0) return 'no drives\n';
    const columns = [
      { title: 'drive' },
      { title: 'image' },
      { title: 'size', align: 'right' },
      { title: 'file' },
    ] as const;
    return table(
      columns,
      attached.map((drive) => [drive.name, drive.image, formatSize(drive.sizeBytes), drive.fuse ?? '–']),
    );
  });
}
