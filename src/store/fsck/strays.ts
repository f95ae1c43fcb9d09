/**
 * The last part of fsck: what is neither a chunk in its folder nor needed. Manifests that no name means, and objects that
 * no lazydisk wrote, or that lie in areas that the store does not know (any more). Folders of chunks are listed by the
 * scan, so here they are passed by where the store can.
 */

import type { ImageDigest } from '../../format/image-digest.ts';
import { chunksPrefix, meaningOf, SHARDS } from '../roots/layout.ts';
import type { StoreParts } from '../roots/parts.ts';
import type { View } from '../roots/view.ts';
import { countForeign } from './chunk-scan.ts';
import type { ShardResult } from './state.ts';

/** Folders of the store that hold no images. */
const PLAIN = ['state/', 'history/', 'hosts/', 'journal/', 'keys/'];
/** Folders of an area without its chunks. */
const IN_AREA = ['manifests/', 'references/', 'inherited/'];

export interface Strays {
  readonly foreign: ShardResult['foreign'];
  readonly leased: { manifests: number; bytes: number };
  readonly young: { manifests: number; bytes: number };
  readonly garbage: { manifests: number; bytes: number };
}

/** Images that no name means and that are alive: hosts have them attached; or a name meant them until lately. */
export interface UnnamedImages {
  readonly leased: ReadonlySet<ImageDigest>;
  readonly late: ReadonlySet<ImageDigest>;
}

export interface StraysOptions {
  readonly nowMs: number;
  readonly signal: AbortSignal | undefined;
}

/** What there is besides the images that names mean. Throws UNAVAILABLE, ABORTED. */
export async function findStrays(
  parts: StoreParts,
  view: View,
  named: ReadonlySet<ImageDigest>,
  unnamed: UnnamedImages,
  { nowMs, signal }: StraysOptions,
): Promise<Strays> {
  const { objects, policy } = parts;
  const found: Strays = {
    foreign: { objects: 0, bytes: 0, examples: [] },
    leased: { manifests: 0, bytes: 0 },
    young: { manifests: 0, bytes: 0 },
    garbage: { manifests: 0, bytes: 0 },
  };
  const each = async (folder: string, isKnown: boolean) => {
    for await (const page of objects.list(folder)) {
      signal?.throwIfAborted();
      for (const info of page) {
        const meaning = meaningOf(info.key);
        if (!meaning || !isKnown) countForeign(found, info);
        else if (meaning.kind === 'manifest' && meaning.area === view.active.path) {
          if (named.has(meaning.digest)) continue;
          const isYoung = unnamed.late.has(meaning.digest) || info.modifiedMs >= nowMs - policy.graceMs;
          const isLeased = unnamed.leased.has(meaning.digest);
          const counted = isLeased ? found.leased : isYoung ? found.young : found.garbage;
          counted.manifests++;
          counted.bytes += info.sizeBytes;
        }
      }
    }
  };
  /** Goes through what is in a folder itself, and into its folders by `enter`. */
  const folders = async (prefix: string, enter: (folder: string) => Promise<void>) => {
    const entered = new Set<string>();
    for await (const page of objects.list(prefix, { shallow: true })) {
      signal?.throwIfAborted();
      for (const info of page) {
        const end = info.key.indexOf('/', prefix.length);
        if (end !== -1) entered.add(info.key.slice(0, end + 1));
        else if (!meaningOf(info.key)) countForeign(found, info);
      }
    }
    for (const folder of [...entered].sort()) await enter(folder);
  };

  // A sweep or a rotation may have opened one since.
  const areas = new Set([...view.areas, ...(await parts.views.newerThan(0)).areas].map(({ path }) => path));
  await folders('', async (top) => {
    if (top !== 'roots/' && top !== 'trash/') return each(top, PLAIN.includes(top));
    await folders(top, async (folder) => {
      const area = [...areas].find((path) => `${path}/` === folder);
      if (!area) return each(folder, false);
      await folders(folder, async (part) => {
        const chunks = chunksPrefix(area);
        if (part !== chunks) return each(part, IN_AREA.includes(part.slice(folder.length)));
        await folders(chunks, async (shard) => {
          if (!SHARDS.includes(shard.slice(chunks.length, -1))) await each(shard, false);
        });
      });
    });
  });
  return found;
}
