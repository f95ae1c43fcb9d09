/**
 * Finds what all names point to, as a reader of each single name would, so that a broken reference does not hide the
 * others. Tombstones point to nothing; names in retired roots are ignored, as by all readers.
 */
import { pooled } from '../../async/pooled.ts';
import { codeOf, errorText } from '../../errors.ts';
import type { ImageDigest } from '../../format/image-digest.ts';
import { meaningOf, referencesPrefix } from '../roots/layout.ts';
import type { StoreParts } from '../roots/parts.ts';
import type { Area, View } from '../roots/view.ts';
import type { Reference } from '../store.ts';
import type { Problem } from './report.ts';

const READS_MAX = 16;
/** Characters of a digest in an error's text. */
const SHORT_DIGEST = 'sha256:'.length + 12;

export interface NamedImage {
  readonly digest: ImageDigest;
  /** Sorted; empty for an image that had a name until recently. */
  readonly names: string[];
  /** The root that must have its manifests: the active one if any of its names is there. */
  home: Area;
  /** When the newest of its names was written, by the writer's clock. */
  updatedMs: number;
}

/** Returns images by digest. Broken references go to `report`. Throws UNAVAILABLE, ABORTED. */
export async function namedImages(
  parts: StoreParts,
  view: View,
  report: (problem: Problem) => void,
): Promise<Map<ImageDigest, NamedImage>> {
  const roots = [view.active, ...(view.draining ? [view.draining] : [])];
  const names = new Set<string>();
  for (const root of roots)
    for (const kind of ['references', 'inherited'] as const)
      for await (const page of parts.objects.list(referencesPrefix(root.path, kind)))
        for (const { key } of page) {
          const meaning = meaningOf(key);
          if (meaning?.kind === 'reference') names.add(meaning.name);
        }
  const images = new Map<ImageDigest, NamedImage>();
  await pooled(READS_MAX, [...names].sort(), async (name) => {
    try {
      const found = await findName(parts, view, roots, name);
      if (found) addName(images, found.reference, found.home);
    } catch (error) {
      if (codeOf(error) !== 'CORRUPT') throw error;
      const text = `${errorText(error)}${await lastMeaning(parts, name)}`;
      report({ kind: 'reference', names: [name], text, copyIn: null, unproven: false, repaired: false });
    }
  });
  for (const { names: all } of images.values()) all.sort();
  return images;
}

async function findName(
  parts: StoreParts,
  view: View,
  roots: readonly Area[],
  name: string,
): Promise<{ reference: Reference; home: Area } | undefined> {
  const { draining: _, ...alone } = view;
  for (const home of roots) {
    const { current } = await parts.references.find({ ...alone, active: home }, name);
    // A tombstone hides the name in the previous root.
    if (current) {
      const { digest } = current;
      return digest === null ? undefined : { reference: { ...current, digest }, home };
    }
  }
  return undefined;
}

function addName(images: Map<ImageDigest, NamedImage>, reference: Reference, home: Area): void {
  const { name, digest, updated } = reference;
  const updatedMs = Date.parse(updated);
  const known = images.get(digest);
  if (!known) {
    images.set(digest, { digest, names: [name], home, updatedMs });
    return;
  }
  known.names.push(name);
  known.updatedMs = Math.max(known.updatedMs, updatedMs);
  if (home.root > known.home.root) known.home = home;
}

/** What the history says of a name that cannot be read. */
async function lastMeaning(parts: StoreParts, name: string): Promise<string> {
  const last = (await parts.references.history(name)).at(-1);
  if (!last) return '';
  return last.digest === null
    ? '; it was removed last'
    : `; it was last set to ${last.digest.slice(0, SHORT_DIGEST)}…`;
}
