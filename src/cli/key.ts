/** `lazydisk key new FILE` */
import { Command } from 'commander';
import { answer, type JsonOptions, withJson } from './context.ts';

interface KeyNewOptions extends JsonOptions {
  readonly domain?: string;
}

export function keyCommand(): Command {
  const command = new Command('key').description('make tenant keys');
  const create = withJson(new Command('new'))
    .description('make a new tenant key in a new file that only its owner can read')
    .argument('<file>', 'the file; it must not exist')
    .option('--domain <name>', 'name of the dedup domain that images under this key share chunks in')
    .addHelpText('after', '\nWhoever loses the key loses the images built with it. JSON: file, id, domain.')
    .action(keyNew);
  return command.addCommand(create);
}

async function keyNew(file: string, options: KeyNewOptions): Promise<void> {
  const { newKeyFile } = await import('../store/key-file.ts');
  const key = await newKeyFile(file, options.domain === undefined ? {} : { domain: options.domain });
  answer(options, { file, id: key.id, domain: key.domain }, (made) => `key ${made.id} in ${made.file}\n`);
}
