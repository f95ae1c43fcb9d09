/**
 * The files in a tar archive, read in place: the headers are read once to find where each file is, and a file is then a
 * range of the archive. Nothing is unpacked.
 */
import { open } from 'node:fs/promises';
import { posix } from 'node:path';
import { LazydiskError, withContext } from '../../errors.ts';
import { FileInput } from '../tar/input.ts';
import { readTar } from '../tar/reader.ts';
import { readRange, type SourceFiles, systemError } from './files.ts';

const ENTRIES_MAX = 100_000;
/** All names and link targets together. */
const NAMES_BYTES_MAX = 32 * 2 ** 20;
const LINKS_FOLLOWED_MAX = 8;

/** The first bytes of compressed archives. */
const COMPRESSED: [string, Buffer][] = [
  ['gzip', Buffer.from([0x1f, 0x8b])],
  ['zstd', Buffer.from([0x28, 0xb5, 0x2f, 0xfd])],
  ['xz', Buffer.from([0xfd, 0x37, 0x7a, 0x58, 0x5a])],
  ['bzip2', Buffer.from('BZh')],
];

type Place = { readonly offset: number; readonly sizeBytes: number } | { readonly link: string };

/** Throws NOT_FOUND, UNSUPPORTED (a compressed archive), CORRUPT (not a tar, or a truncated one). */
export async function openArchiveFiles(path: string): Promise<SourceFiles> {
  const file = await open(path, 'r').catch((error: unknown) => {
    throw systemError(path, error);
  });
  try {
    const status = await file.stat();
    if (!status.isFile()) throw new LazydiskError('NOT_FOUND', `${path} is not a regular file`);
    const start = Buffer.alloc(8);
    await file.read(start, 0, start.length, 0);
    for (const [name, magic] of COMPRESSED) {
      if (!start.subarray(0, magic.length).equals(magic)) continue;
      throw new LazydiskError(
        'UNSUPPORTED',
        `${path} is compressed with ${name}; layers are read in place, so unpack it first (${name} -d)`,
      );
    }
    const places = await index(path, new FileInput(file, status.size));
    const find = (name: string) => resolve(places, name);
    return {
      description: path,
      async sizeOf(name) {
        return find(name)?.sizeBytes;
      },
      async *read(name) {
        const place = find(name);
        if (!place) throw new LazydiskError('NOT_FOUND', `${path} does not contain ${name}`);
        try {
          yield* readRange(file, place.offset, place.sizeBytes);
        } catch (error) {
          throw systemError(path, error);
        }
      },
      async close() {
        await file.close();
      },
    };
  } catch (error) {
    await file.close();
    throw error;
  }
}

async function index(path: string, input: FileInput): Promise<Map<string, Place>> {
  const places = new Map<string, Place>();
  let nameBytes = 0;
  try {
    for await (const entry of readTar(input)) {
      nameBytes += entry.name.length + entry.target.length;
      if (nameBytes > NAMES_BYTES_MAX)
        throw new LazydiskError('UNSUPPORTED', `more than ${NAMES_BYTES_MAX} bytes of names in one archive`);
      const name = posix.normalize(`/${entry.name}`);
      if (entry.kind === 'file' && !entry.segments) {
        places.set(name, { offset: entry.bodyOffset, sizeBytes: entry.sizeBytes });
      } else if (entry.kind === 'symlink') {
        places.set(name, { link: posix.resolve(posix.dirname(name), entry.target) });
      } else if (entry.kind === 'link') places.set(name, { link: posix.normalize(`/${entry.target}`) });
      if (places.size > ENTRIES_MAX)
        throw new LazydiskError('UNSUPPORTED', `more than ${ENTRIES_MAX} files in one archive`);
    }
  } catch (error) {
    if (!(error instanceof LazydiskError)) throw error;
    throw withContext(error, path);
  }
  return places;
}

/** Follows the links that `docker save` puts between equal layers; all names are inside the archive. */
function resolve(places: Map<string, Place>, name: string) {
  let place = places.get(posix.normalize(`/${name}`));
  for (let hops = 0; place && 'link' in place; hops++) {
    if (hops === LINKS_FOLLOWED_MAX) return undefined;
    place = places.get(place.link);
  }
  return place;
}
