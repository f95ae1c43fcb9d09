/** `lazydisk attach IMAGE` */
import { Command } from 'commander';
import type { DriveInfo } from '../daemon/api.ts';
import { formatSize } from '../units.ts';
import { answer, clientOf, type JsonOptions, type RunDirOptions, withJson, withRunDir } from './context.ts';
import { list } from './table.ts';

interface AttachOptions extends JsonOptions, RunDirOptions {
  readonly name?: string;
}

export function attachCommand(): Command {
  return withJson(withRunDir(new Command('attach')), 'attach')
    .description('make a drive of an image, as a file and as an NBD export')
    .argument('<image>', 'NAME[:TAG] or sha256:…')
    .option('--name <drive>', "the drive's name (default: from the image's, as in debian-12)")
    .addHelpText(
      'after',
      `
In JSON, "fuse" is a path, or null without FUSE; "nbd" and "nbdTcp" are URIs, the second null without --nbd-tcp.`,
    )
    .action(attach);
}

async function attach(image: string, options: AttachOptions): Promise<void> {
  const { name } = options;
  const drive = await (await clientOf(options)).attach(name === undefined ? { image } : { image, name });
  answer(options, drive, describeDrive);
}

/** How to reach the drive, for people. */
function describeDrive(drive: DriveInfo): string {
  return list([
    ['drive', drive.name],
    ['image', drive.image],
    ['digest', drive.digest],
    ['size', formatSize(drive.sizeBytes)],
    ['file', drive.fuse ?? 'none: this daemon has no FUSE'],
    ['nbd', drive.nbdTcp ? [drive.nbd, drive.nbdTcp] : drive.nbd],
  ]);
}
