/**
 * What is alive in the active root: the images that names mean; those that a name meant until lately, since drives of
 * them may still be attached; and those that have a manifest there and no name yet, or again, for somebody may be about to
 * give them one. Their manifests say which chunks. Needs no key. It fails rather than guess: a name whose manifest cannot be
 * read could mean any chunk, and then none is garbage.
 */
import { errorText, LazydiskError } from '../../errors.ts';
import { ID_BYTES } from '../../format/chunk-id.ts';
import type { ClearManifest } from '../../format/manifest-clear.ts';
import { firstClear, manifestKeysIn } from '../carry.ts';
import { type AreaPath, manifestsPrefix, meaningOf } from '../layout.ts';
import type { ObjectStore } from '../objects/object-store.ts';
import type { StoreParts } from '../parts.ts';
import { pooled } from '../pooled.ts';
import type { DatedRecord } from '../references.ts';
import type { ImageDigest, Reference } from '../store.ts';
import type { Area, View } from '../view.ts';
import { IdTable } from './id-table.ts';

const MANIFESTS_MAX = 8;

/** Times that a manifest which must be there is looked for once more. */
const LOOKS_MAX = 3;

export interface LiveSet {
  readonly chunks: IdTable;
  readonly images: ReadonlySet<ImageDigest>;
}

export interface MarkOptions {
  /** The store's time now, in milliseconds since 1970. */
  readonly nowMs: number;
  /** Manifests in the root that were written since count, whatever names say. */
  readonly unnamedSinceMs: number;
  onProgress?(images: number, imagesTotal: number): void;
  readonly signal?: AbortSignal;
}

/** Throws CORRUPT or NOT_FOUND naming the name whose image cannot be known, UNAVAILABLE, ABORTED. */
export async function mark(parts: StoreParts, view: View, options: MarkOptions): Promise<LiveSet> {
  const { references, objects, policy } = parts;
  const named = new Map<ImageDigest, string>();
  const current = await references.list(view);
  for (const { name, digest } of current) named.set(digest, name);
  const lately = latelyNamed(await references.history(), current, options.nowMs - policy.graceMs);

  const chunks = new IdTable();
  const unnamed = await manifestsSince(objects, view.active.path, options.unnamedSinceMs);
  const images = new Set<ImageDigest>([...named.keys(), ...lately, ...unnamed]);
  let done = 0;
  await pooled(MANIFESTS_MAX, images, async (digest) => {
    options.signal?.throwIfAborted();
    const name = named.get(digest);
    const found = findClear(objects, areasOfRoot(view, view.active), digest, name ?? digest);
    // One that nobody can open keeps nothing, unless a name stands for it.
    const clear =
      (await (name === undefined ? found.catch(() => undefined) : found)) ??
      (name !== undefined && (await findLater(parts, view, digest, name, options.signal)));
    if (clear) addChunks(chunks, clear);
    options.onProgress?.(++done, images.size);
  });
  return { chunks, images };
}

/**
 * The manifest that a name's image did not have: just written, or just put aside, it is there when listings have caught up;
 * again, because it may be moving just then. Undefined if the name means another image by then; what is named later than
 * a mark is safe without it.
 */
async function findLater(
  parts: StoreParts,
  view: View,
  digest: ImageDigest,
  name: string,
  signal: AbortSignal | undefined,
): Promise<ClearManifest | undefined> {
  const { clock, policy, views, objects, references } = parts;
  for (let look = 0; look < LOOKS_MAX; look++) {
    await clock.sleep(policy.settleMs, signal);
    const later = await views.newerThan(0);
    if (later.active.path !== view.active.path)
      throw new LazydiskError(
        'BUSY',
        `${objects.url}: ${later.active.path} was opened meanwhile; run it again`,
      );
    const clear = await findClear(objects, areasOfRoot(later, later.active), digest, name);
    if (clear || (await references.find(view, name)).current?.digest !== digest) return clear;
  }
  throw new LazydiskError(
    'NOT_FOUND',
    `${objects.url}: ${name} means image ${digest}, which has no manifest, so what is garbage cannot be known; \`lazydisk fsck\` says more, \`lazydisk rm ${name}\` gives it up`,
  );
}

/** A root and the trash of its sweeps: where what is in it lies. */
export function areasOfRoot({ trash }: View, { path, root }: Area): AreaPath[] {
  return [path, ...trash.filter((area) => area.root === root).map((area) => area.path)];
}

async function manifestsSince(objects: ObjectStore, root: AreaPath, sinceMs: number): Promise<ImageDigest[]> {
  const found: ImageDigest[] = [];
  for await (const page of objects.list(manifestsPrefix(root))) {
    for (const { key, modifiedMs } of page) {
      const meaning = meaningOf(key);
      if (meaning?.kind === 'manifest' && modifiedMs >= sinceMs) found.push(meaning.digest);
    }
  }
  return found;
}

/**
 * Images that a name meant at some time since `sinceMs`, as the records of what names were set to tell: one meant its
 * image until the next was written. A last record that is not what the name means now is of a writer that stopped
 * before it set the name, or that another overtook.
 */
export function latelyNamed(
  records: readonly DatedRecord[],
  current: readonly Reference[],
  sinceMs: number,
): Set<ImageDigest> {
  const now = new Map(current.map(({ name, digest }) => [name, digest]));
  const byName = new Map<string, DatedRecord[]>();
  for (const record of records) {
    const list = byName.get(record.name);
    if (list) list.push(record);
    else byName.set(record.name, [record]);
  }
  const found = new Set<ImageDigest>();
  for (const [name, list] of byName) {
    list.sort((a, b) => a.modifiedMs - b.modifiedMs);
    for (const [n, { digest, modifiedMs }] of list.entries()) {
      const endedMs = list[n + 1]?.modifiedMs ?? modifiedMs;
      if (digest !== null && digest !== now.get(name) && endedMs >= sinceMs) found.add(digest);
    }
  }
  return found;
}

/** The first manifest of `digest` in `areas` that proves itself; undefined if there is none at all. */
export async function findClear(
  objects: ObjectStore,
  areas: readonly AreaPath[],
  digest: ImageDigest,
  name: string,
): Promise<ClearManifest | undefined> {
  const places: { area: AreaPath; keyId: string }[] = [];
  for (const area of areas)
    for (const keyId of await manifestKeysIn(objects, area, digest)) places.push({ area, keyId });
  return firstClear(objects, places, digest).catch((cause) => {
    const code = cause instanceof LazydiskError ? cause.code : 'INTERNAL';
    throw new LazydiskError(code, `image ${name}: ${errorText(cause)}`, { cause });
  });
}

function addChunks(table: IdTable, clear: ClearManifest): void {
  const { ids } = clear;
  for (let at = 0; at < ids.length; at += ID_BYTES) table.add(ids, at);
}
