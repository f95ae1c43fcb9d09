/** `lazydisk tag IMAGE NAME` */
import { Command } from 'commander';
import { LazydiskError } from '../errors.ts';
import type { ImageDigest } from '../format/image-digest.ts';
import { isDigest } from '../format/image-digest.ts';
import { findReference } from '../store/find-reference.ts';
import { referenceName } from '../store/reference-name.ts';
import type { Store } from '../store/store.ts';
import { answer, type JsonOptions, storeOption, usingStore, withJson } from './context.ts';

interface TagOptions extends JsonOptions {
  readonly store?: string;
  readonly expected?: string;
}

export function tagCommand(): Command {
  return withJson(new Command('tag'), 'tag')
    .description('give an image a name, one more or one that meant another image')
    .argument('<image>', 'NAME[:TAG] or sha256:…')
    .argument('<name[:tag]>', 'the name')
    .addOption(storeOption())
    .option('--expected <digest>', 'only if the name means this now: sha256:…, or "none" for nothing')
    .addHelpText(
      'after',
      `
An image that lost its last name can be named by its digest as long as no \`gc purge\` has deleted it.`,
    )
    .action(tag);
}

async function tag(image: string, name: string, options: TagOptions): Promise<void> {
  const fullName = referenceName(name);
  const expected = options.expected === undefined ? {} : { expected: parseExpected(options.expected) };
  const tagged = await usingStore(options, async (store) => {
    const digest = await digestOf(store, image);
    await (await store.writer()).putReference(fullName, digest, expected);
    return { name: fullName, digest };
  });
  answer(options, tagged, ({ digest }) => `${fullName} is ${digest}\n`);
}

async function digestOf(store: Store, image: string): Promise<ImageDigest> {
  if (isDigest(image)) return image;
  return (await findReference(store, image)).digest;
}

function parseExpected(text: string): ImageDigest | null {
  if (text === 'none') return null;
  if (isDigest(text)) return text;
  throw new LazydiskError('USAGE', `--expected ${JSON.stringify(text)}: want sha256:… or none`);
}
