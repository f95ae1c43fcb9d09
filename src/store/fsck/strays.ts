/**
 * The last part of fsck: finds unneeded objects outside the chunk folders. They are manifests without a name, objects
 * that lazydisk does not write, and objects in areas that the store does not know (any more). The scan lists the chunk
 * folders, so they are skipped here if the store allows.
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

/** Live images without a name: those that hosts have attached, and those named until recently. */
export interface UnnamedImages {
  readonly leased: ReadonlySet<ImageDigest>;
  readonly late: ReadonlySet<ImageDigest>;
}

export interface StraysOptions {
  readonly nowMs: number;
  readonly signal: AbortSignal | undefined;
}

/** Finds what the store has besides named images. Throws UNAVAILABLE, ABORTED. */
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
  /** Checks the objects directly in a folder, and calls `enter` for its subfolders. */
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

  // A sweep or a rotation may have opened an area since.
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
