/**
 * The first part of fsck: checks that every named image has a valid manifest for each key that it is sealed for.
 * Replacements for broken and missing manifests are looked for at once, because only a manifest tells which chunks to
 * look for.
 */
import { codeOf, errorText, LazydiskError } from '../../errors.ts';
import type { ImageDigest } from '../../format/image-digest.ts';
import type { Manifest } from '../../format/manifest.ts';
import type { ClearManifest } from '../../format/manifest-clear.ts';
import type { KeyRing } from '../../keys/key-ring.ts';
import { areasOfRoot, findClear } from '../gc/mark.ts';
import { checkManifest, manifestProof, recombine, type WholeManifest } from '../manifest-check.ts';
import { manifestKeysIn } from '../roots/carry.ts';
import { type AreaPath, manifestKey } from '../roots/layout.ts';
import type { StoreParts } from '../roots/parts.ts';
import { MANIFEST_BYTES_MAX, placeManifest } from '../roots/place-manifest.ts';
import type { View } from '../roots/view.ts';
import type { NamedImage } from './names.ts';
import type { Problem } from './report.ts';
import { readObject, type Sources } from './source.ts';

/** An image whose chunks are known. */
export interface KnownImage {
  readonly digest: ImageDigest;
  readonly names: readonly string[];
  readonly isDraining: boolean;
  /** Reads the manifest again, because all of them would not fit into memory. */
  clear(): Promise<ClearManifest>;
  /** Null if none of our keys opens it. */
  open(): Promise<Manifest | null>;
}

export interface ImageCheckOptions {
  readonly keys: KeyRing | undefined;
  readonly sources: Sources;
  /** Write good copies into the store. */
  readonly write: boolean;
  report(problem: Problem): void;
  readonly signal: AbortSignal | undefined;
}

interface Copies {
  /** By area: in the image's root and that root's trash. */
  readonly whole: Map<AreaPath, WholeManifest>;
  readonly broken: Map<AreaPath, { readonly bytes: Buffer; readonly why: string }>;
}

interface FoundManifest {
  readonly whole: WholeManifest;
  /** Where it was found, for messages. */
  readonly from: string;
}

export class ImageCheck {
  manifests = 0;
  opened = 0;
  /** Live manifests in trash. */
  inTrash = 0;
  readonly #parts: StoreParts;
  readonly #view: View;
  readonly #options: ImageCheckOptions;

  constructor(parts: StoreParts, view: View, options: ImageCheckOptions) {
    this.#parts = parts;
    this.#view = view;
    this.#options = options;
  }

  /** The image and its chunks; undefined if no good manifest was found. Throws UNAVAILABLE, ABORTED. */
  async check(image: NamedImage): Promise<{ known: KnownImage; clear: ClearManifest } | undefined> {
    this.#options.signal?.throwIfAborted();
    const areas = areasOfRoot(this.#view, image.home);
    const copies = await this.#copies(image, areas);
    if (copies.size === 0) return this.#findLost(image);
    const root = image.home.path;
    let best: WholeManifest | undefined;
    for (const [keyId, { whole, broken }] of copies) {
      // A broken manifest in trash matters only if there is no other.
      const own = broken.get(root) ?? (whole.size === 0 ? [...broken.values()][0] : undefined);
      if (!own && !whole.has(root)) this.inTrash++;
      const mended = own && (await this.#mend(image, keyId, own, copies));
      best ??= mended ?? [...whole.values()][0];
    }
    return best && this.#known(image, best);
  }

  /**
   * The chunks of an image without a name that is live; `why` tells the reason. While its manifest is corrupt, no chunk
   * is garbage.
   */
  async unnamedClear(digest: ImageDigest, why: string): Promise<ClearManifest | undefined> {
    const { objects } = this.#parts;
    try {
      return await findClear(objects, areasOfRoot(this.#view, this.#view.active), digest, digest);
    } catch (error) {
      if (codeOf(error) !== 'CORRUPT') throw error;
      const text = `${why}: ${errorText(error)}`;
      this.#options.report({
        kind: 'manifest',
        names: [digest],
        text,
        copyIn: null,
        unproven: false,
        repaired: false,
      });
      return undefined;
    }
  }

  async #copies({ digest }: NamedImage, areas: readonly AreaPath[]): Promise<Map<string, Copies>> {
    const { objects } = this.#parts;
    const found = new Map<string, Copies>();
    for (const area of areas) {
      for (const keyId of await manifestKeysIn(objects, area, digest)) {
        const key = manifestKey(area, digest, keyId);
        const bytes = await readObject(objects, key, MANIFEST_BYTES_MAX);
        if (bytes === 'absent') continue;
        this.manifests++;
        const copies = found.get(keyId) ?? { whole: new Map(), broken: new Map() };
        found.set(keyId, copies);
        try {
          if (bytes === 'unreadable') throw new LazydiskError('CORRUPT', `${key} cannot be read`);
          const whole = await checkManifest(bytes, digest, keyId, key, this.#options.keys);
          if (whole.opened) this.opened++;
          copies.whole.set(area, whole);
        } catch (error) {
          if (codeOf(error) !== 'CORRUPT') throw error;
          const left = typeof bytes === 'string' ? Buffer.alloc(0) : bytes;
          copies.broken.set(area, { bytes: left, why: errorText(error) });
        }
      }
    }
    return found;
  }

  /** Finds a good replacement for a broken manifest; undefined if there is none. */
  async #mend(
    image: NamedImage,
    keyId: string,
    own: { readonly bytes: Buffer; readonly why: string },
    all: ReadonlyMap<string, Copies>,
  ): Promise<WholeManifest | undefined> {
    const found =
      (await this.#findCopy(image.digest, keyId)) ?? (await this.#recombined(image.digest, keyId, own, all));
    // Only replaced if a key opened the new one: the broken one may be the last good copy of its sealed part.
    const repaired = found?.whole.opened != null && (await this.#write(image, keyId, found.whole));
    this.#report(image, 'manifest', own.why, found, repaired);
    return found?.whole;
  }

  /** Finds a manifest for an image that has none where it should be. Undefined if there is none at all. */
  async #findLost(image: NamedImage): Promise<{ known: KnownImage; clear: ClearManifest } | undefined> {
    const { clock, policy } = this.#parts;
    const isYoung = Math.abs(Date.now() - image.updatedMs) < policy.settleMs;
    if (isYoung) {
      // A listing may not show a manifest that was just written.
      await clock.sleep(policy.settleMs, this.#options.signal);
      if ((await this.#copies(image, areasOfRoot(this.#view, image.home))).size > 0) return this.check(image);
    }
    if (!(await this.#isStillNamed(image))) return undefined;
    const keyIds = new Set<string>();
    for (const { path } of this.#view.areas)
      for (const keyId of await manifestKeysIn(this.#parts.objects, path, image.digest)) keyIds.add(keyId);
    const there = await this.#options.sources.manifest(async (manifests) => {
      const listed = await manifests.manifestKeys(image.digest);
      return listed.length > 0 ? listed : undefined;
    });
    for (const keyId of there?.found ?? []) keyIds.add(keyId);
    // The sources may not support listing.
    for (const keyId of (await this.#options.keys?.ids()) ?? []) keyIds.add(keyId);
    const text = `it means ${image.digest}, which has no manifest`;
    let best: FoundManifest | undefined;
    let repaired = true;
    for (const keyId of keyIds) {
      const found = await this.#findCopy(image.digest, keyId);
      if (!found) continue;
      if (!best || !found.whole.opened) best = found;
      if (!(await this.#write(image, keyId, found.whole))) repaired = false;
    }
    this.#report(image, 'name', text, best, best !== undefined && repaired);
    return best && this.#known(image, best.whole);
  }

  async #isStillNamed({ names, digest }: NamedImage): Promise<boolean> {
    const { references } = this.#parts;
    for (const name of names)
      if ((await references.find(this.#view, name)).current?.digest === digest) return true;
    return false;
  }

  /** A valid manifest for the key in any area or source. */
  async #findCopy(digest: ImageDigest, keyId: string): Promise<FoundManifest | undefined> {
    const { objects } = this.#parts;
    const { keys, sources } = this.#options;
    for (const { path } of this.#view.areas) {
      const bytes = await readObject(objects, manifestKey(path, digest, keyId), MANIFEST_BYTES_MAX);
      if (typeof bytes === 'string') continue;
      const whole = await checkManifest(bytes, digest, keyId, path, keys).catch(unlessCorrupt);
      if (whole) return { whole, from: path };
    }
    const other = await sources.manifest(async (manifests) => {
      const bytes = await manifests.getManifest(digest, keyId);
      return bytes && checkManifest(bytes, digest, keyId, keyId, keys).catch(unlessCorrupt);
    });
    return other && { whole: other.found, from: other.from };
  }

  async #recombined(
    digest: ImageDigest,
    keyId: string,
    own: { readonly bytes: Buffer },
    all: ReadonlyMap<string, Copies>,
  ): Promise<FoundManifest | undefined> {
    for (const [otherId, { whole: copies }] of all) {
      for (const other of copies.values()) {
        const whole = await recombine(own.bytes, other, digest, keyId, this.#options.keys);
        if (whole) return { whole, from: `the manifest for key ${otherId}` };
      }
    }
    return undefined;
  }

  /** Writes the manifest where it belongs and reads it back. False if not writing, or if that failed. */
  async #write({ digest, home }: NamedImage, keyId: string, { bytes }: WholeManifest): Promise<boolean> {
    if (!this.#options.write) return false;
    const { objects } = this.#parts;
    const opens = await manifestProof(digest, keyId, this.#options.keys);
    const placement = await placeManifest(objects, home.path, [], { digest, keyId, bytes, opens });
    if (placement !== 'written') return placement === 'present';
    const back = await objects.get(manifestKey(home.path, digest, keyId), MANIFEST_BYTES_MAX);
    return back?.bytes.equals(bytes) ?? false;
  }

  #report(
    { names, digest }: NamedImage,
    kind: Problem['kind'],
    text: string,
    found: FoundManifest | undefined,
    repaired: boolean,
  ): void {
    const hit = names.length > 0 ? names : [digest];
    const unproven = found !== undefined && !found.whole.opened;
    this.#options.report({ kind, names: hit, text, copyIn: found?.from ?? null, unproven, repaired });
  }

  #known(image: NamedImage, found: WholeManifest): { known: KnownImage; clear: ClearManifest } {
    const { digest, names, home } = image;
    const isDraining = home.path !== this.#view.active.path;
    const known: KnownImage = {
      digest,
      names,
      isDraining,
      clear: () => this.#readClear(digest, names[0] ?? digest),
      open: () => this.#open(digest),
    };
    return { known, clear: found.clear };
  }

  async #readClear(digest: ImageDigest, name: string): Promise<ClearManifest> {
    const { objects } = this.#parts;
    const areas = this.#view.areas.map(({ path }) => path);
    const inStore = await findClear(objects, areas, digest, name).catch(unlessCorrupt);
    const clear = inStore ?? (await this.#findOutside(digest))?.clear;
    if (clear) return clear;
    throw new LazydiskError('BUSY', `${objects.url}: the manifest of ${name} is gone by now; run it again`);
  }

  async #findOutside(digest: ImageDigest): Promise<WholeManifest | undefined> {
    const ours = (await this.#options.keys?.ids()) ?? [];
    const found = await this.#options.sources.manifest(async (manifests) => {
      const listed = await manifests.manifestKeys(digest).catch(() => ours);
      for (const keyId of listed) {
        const bytes = await manifests.getManifest(digest, keyId);
        if (!bytes) continue;
        const whole = await checkManifest(bytes, digest, keyId, keyId, undefined).catch(unlessCorrupt);
        if (whole) return whole;
      }
      return undefined;
    });
    return found?.found;
  }

  /** Opens it with any of our keys; the first manifest found may be for another. */
  async #open(digest: ImageDigest): Promise<Manifest | null> {
    for (const keyId of (await this.#options.keys?.ids()) ?? []) {
      const found = await this.#findCopy(digest, keyId);
      if (found?.whole.opened) return found.whole.opened;
    }
    return null;
  }
}

function unlessCorrupt(error: unknown): undefined {
  if (codeOf(error) === 'CORRUPT') return undefined;
  throw error;
}
