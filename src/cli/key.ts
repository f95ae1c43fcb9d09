/** `lazydisk key new FILE` */
import { Command, Option } from 'commander';
import { LazydiskError } from '../errors.ts';
import { answer, type JsonOptions, loadKey, withJson } from './context.ts';

interface KeyNewOptions extends JsonOptions {
  readonly domain?: string;
  readonly sharing?: string;
}

export function keyCommand(): Command {
  const command = new Command('key').description('make tenant keys');
  const create = withJson(new Command('new'))
    .description('make a new tenant key in a new file that only its owner can read')
    .argument('<file>', 'the file; it must not exist')
    .option('--domain <name>', 'name of the dedup domain that images under this key share chunks in')
    .addOption(
      new Option(
        '--sharing <key>',
        'join the dedup domain of this key: images under the two share chunks',
      ).conflicts('domain'),
    )
    .addHelpText('after', '\nWhoever loses the key loses the images built with it. JSON: file, id, domain.')
    .action(keyNew);
  return command.addCommand(create);
}

async function keyNew(target: string, options: KeyNewOptions): Promise<void> {
  const [{ newKeyFile }, { parseKeySpec }] = await Promise.all([
    import('../store/key-file.ts'),
    import('../store/key-spec.ts'),
  ]);
  const spec = parseKeySpec(target);
  if (spec.kind !== 'file') throw new LazydiskError('USAGE', `key ${target}: want a file`);
  const file = spec.path;
  const key = await newKeyFile(file, {
    ...(options.domain !== undefined && { domain: options.domain }),
    ...(options.sharing !== undefined && { sharing: await loadKey(options.sharing) }),
  });
  answer(options, { file, id: key.id, domain: key.domain }, (made) => `key ${made.id} in ${made.file}\n`);
}
