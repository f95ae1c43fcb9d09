/** `lazydisk detach DRIVE` */
import { Command } from 'commander';
import { answer, clientOf, type JsonOptions, type RunDirOptions, withJson, withRunDir } from './context.ts';

export function detachCommand(): Command {
  return withJson(withRunDir(new Command('detach')), 'detach')
    .description('take a drive away')
    .argument('<drive>', 'its name')
    .addHelpText(
      'after',
      `
NBD connections to the drive are closed. Who still has its FUSE file open gets I/O errors, unless another drive of
the same image is attached (they share the file) or what it reads is in the page cache.`,
    )
    .action(detach);
}

async function detach(drive: string, options: JsonOptions & RunDirOptions): Promise<void> {
  await (await clientOf(options)).detach(drive);
  answer(options, { name: drive }, ({ name }) => `detached ${name}\n`);
}
