/**
 * Copies what drives need from a root that is left behind: leased images that no name points to any more, and that no
 * rotation therefore moves by name.
 */
import { codeOf, errorText, LazydiskError } from '../../errors.ts';
import type { ImageDigest } from '../../format/image-digest.ts';
import { formatDuration } from '../../units.ts';
import { leasedOf } from '../leases.ts';
import { ensureIn } from '../roots/carry.ts';
import type { StoreParts } from '../roots/parts.ts';
import type { Area } from '../roots/view.ts';
import { areasOfRoot, imagesIn } from './mark.ts';

/** A leased image that cannot be copied; it holds the root. */
export interface StuckImage {
  readonly image: ImageDigest;
  readonly host: string;
  readonly why: string;
}

export interface CarryLeasedOptions {
  /** Leases written since this store time count. */
  readonly sinceMs: number;
  readonly dryRun?: boolean | undefined;
  onCopied?(bytes: number): void;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Copies the leased images of `root` and its trash into the active root, unless they are there. Returns those that it
 * copied, or with `dryRun` would copy, and those that it could not copy because they are damaged. Throws TIMEOUT for an
 * image that takes longer than the store allows, UNAVAILABLE, ABORTED.
 */
export async function carryLeased(
  parts: StoreParts,
  root: Area,
  { sinceMs, dryRun, onCopied, signal }: CarryLeasedOptions,
): Promise<{ readonly carried: ImageDigest[]; readonly stuck: StuckImage[] }> {
  const { objects, views, policy } = parts;
  const view = await views.newerThan(policy.viewMs / 2);
  const left = await imagesIn(objects, areasOfRoot(view, root));
  for (const image of (await imagesIn(objects, [view.active.path])).keys()) left.delete(image);
  const stuck: StuckImage[] = [];
  const carried: ImageDigest[] = [];
  if (left.size === 0) return { carried, stuck };
  const { leased } = await leasedOf(objects, left, { sinceMs, signal });
  for (const [image, host] of leased) {
    signal?.throwIfAborted();
    try {
      if (dryRun || (await carry(parts, image, onCopied))) carried.push(image);
    } catch (error) {
      const code = codeOf(error);
      if (code !== 'CORRUPT' && code !== 'NOT_FOUND') throw error;
      stuck.push({ image, host, why: errorText(error) });
    }
  }
  return { carried, stuck };
}

async function carry(
  parts: StoreParts,
  image: ImageDigest,
  onCopied: CarryLeasedOptions['onCopied'],
): Promise<boolean> {
  const { objects, views, policy, clock } = parts;
  const startedAt = clock.now();
  const view = await views.newerThan(policy.viewMs / 2);
  const checkTime = () => {
    if (clock.ageMs(startedAt) <= policy.buildMs) return;
    const text = `${objects.url}: image ${image} took over ${formatDuration(policy.buildMs)} to move: run it again`;
    throw new LazydiskError('TIMEOUT', text);
  };
  return ensureIn(parts, view, view.active.path, image, { checkTime, ...(onCopied && { onCopied }) });
}
