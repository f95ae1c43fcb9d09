/**
 * The drives of one daemon, attached and detached by name. Each is a thin object over its image's shared manifest and
 * the shared chunk reader. A name is reserved as soon as an attach begins, so only one of two concurrent attaches wins;
 * a drive enters the registry (and so the exports) only when it can be read.
 */
import type { ChunkReader } from '../chunk/reader.ts';
import { TIERS } from '../chunk/tier.ts';
import type { PinnedBytes } from '../drive/block-device.ts';
import { Drive, type DriveOptions } from '../drive/drive.ts';
import { checkDriveName, driveNameFor } from '../drive/drive-name.ts';
import { DriveRegistry } from '../drive/registry.ts';
import { LazydiskError } from '../errors.ts';
import type { ImageDigest } from '../format/image-digest.ts';
import type { Admission, Admitted, StartingDrive } from './admission.ts';
import type { AttachRequest, DriveInfo, DriveStat, TierInfo } from './api.ts';
import type { SharedImages } from './images.ts';

/** Attached drives and attaches in progress, together. */
const DRIVES_MAX = 16_384;

/** Where the exports offer a drive. */
export interface DrivePlaces {
  fuse(name: string): string | null;
  nbd(name: string): string;
  nbdTcp(name: string): string | null;
}

interface Attached {
  readonly drive: Drive;
  /** The image as requested, in full. */
  readonly image: string;
  readonly attachedAt: string;
  readonly admitted: Admitted;
}

export interface DrivesOptions {
  readonly images: SharedImages;
  readonly reader: ChunkReader;
  readonly readTimeoutMs: number;
  /** How long an attach waits for the store. */
  readonly storeTimeoutMs: number;
  readonly admission: Admission;
  readonly places: DrivePlaces;
  readonly onReadError: (drive: string, error: unknown) => void;
}

/** A drive that reports its failed reads. Reads answered from memory do not pass through here. */
class ServedDrive extends Drive {
  readonly #onReadError: (drive: string, error: unknown) => void;

  constructor(options: DriveOptions, onReadError: (drive: string, error: unknown) => void) {
    super(options);
    this.#onReadError = onReadError;
  }

  override async read(...asked: Parameters<Drive['read']>): Promise<PinnedBytes> {
    try {
      return await super.read(...asked);
    } catch (error) {
      this.#onReadError(this.name, error);
      throw error;
    }
  }
}

function startingDrive(drive: Drive): StartingDrive {
  return {
    name: drive.name,
    progress: () => {
      const { reads, tiers, inFlight } = drive.stats();
      return { reads, originChunks: tiers.origin?.chunks ?? 0, inFlight };
    },
  };
}

export class Drives {
  readonly registry = new DriveRegistry<Drive>();
  readonly #options: DrivesOptions;
  readonly #attached = new Map<string, Attached>();
  /**
   * The names of the attached drives, kept sorted: sorting them all at once would block the event loop for
   * milliseconds.
   */
  readonly #names: string[] = [];
  readonly #attaching = new Set<string>();
  readonly #stopping = new AbortController();
  #closed = false;

  constructor(options: DrivesOptions) {
    this.#options = options;
  }

  get size(): number {
    return this.#attached.size;
  }

  /**
   * Throws USAGE, EXISTS, NOT_FOUND, KEY, CORRUPT, UNAVAILABLE; OVERLOAD above DRIVES_MAX or if the origin is slow;
   * TIMEOUT if the store does not answer; ABORTED once `signal` is aborted. After an error the name is free again.
   */
  async attach(request: AttachRequest, signal: AbortSignal): Promise<DriveInfo> {
    const name = checkDriveName(request.name ?? driveNameFor(request.image));
    if (this.#closed) throw new LazydiskError('UNAVAILABLE', 'the daemon is stopping');
    if (this.#attached.has(name) || this.#attaching.has(name)) {
      const hint = request.name === undefined ? '; give another name with --name' : '';
      throw new LazydiskError('EXISTS', `drive ${name} is attached already${hint}`);
    }
    if (this.#attached.size + this.#attaching.size >= DRIVES_MAX) {
      throw new LazydiskError('OVERLOAD', `${DRIVES_MAX} drives are attached`);
    }
    this.#attaching.add(name);
    try {
      return await this.#attach(name, request.image, AbortSignal.any([signal, this.#stopping.signal]));
    } catch (error) {
      throw this.#closed
        ? new LazydiskError('UNAVAILABLE', 'the daemon is stopping', { cause: error })
        : error;
    } finally {
      this.#attaching.delete(name);
    }
  }

  async #attach(name: string, imageName: string, signal: AbortSignal): Promise<DriveInfo> {
    const { images, reader, readTimeoutMs, storeTimeoutMs, admission, onReadError } = this.#options;
    const image = await images.acquire(imageName, { deadline: performance.now() + storeTimeoutMs, signal });
    try {
      // Only now, so that attaches that wait for a hanging store do not block those that do not need it.
      const admitted = await admission.admit(signal);
      const drive = new ServedDrive({ name, image, reader, readTimeoutMs }, onReadError);
      const attached = { drive, image: image.name, attachedAt: new Date().toISOString(), admitted };
      this.#attached.set(name, attached);
      this.#names.splice(this.#placeOf(name), 0, name);
      this.registry.add(drive);
      admitted.started(startingDrive(drive));
      return this.#info(attached);
    } catch (error) {
      images.release(image.digest);
      throw error;
    }
  }

  /** Removes the drive from the exports, then cancels its pending reads. Throws NOT_FOUND. */
  detach(name: string): void {
    const { drive, admitted } = this.#get(name);
    admitted.cancel();
    this.#attached.delete(name);
    this.#names.splice(this.#placeOf(name), 1);
    this.registry.remove(name);
    drive.close();
    this.#options.images.release(drive.imageDigest as ImageDigest);
  }

  /** Sorted by name: the drives attached now, except those that are detached before their turn comes. */
  *list(): Generator<DriveInfo> {
    for (const name of [...this.#names]) {
      const attached = this.#attached.get(name);
      if (attached) yield this.#info(attached);
    }
  }

  /** Throws NOT_FOUND. */
  stat(name: string): DriveStat {
    const attached = this.#get(name);
    const { tiers: byTier, readahead, prefetch, lastError, ...counted } = attached.drive.stats();
    const tiers = TIERS.flatMap((tier): TierInfo[] => {
      const found = byTier[tier];
      if (!found) return [];
      const { chunks, bytes, latency } = found;
      const { count, p50Ms, p99Ms, maxMs } = latency;
      return [{ tier, chunks, bytes, reads: count, p50Ms, p99Ms, maxMs }];
    });
    return {
      ...this.#info(attached),
      ...counted,
      fetchedBytes: tiers.reduce((sum, { bytes }) => sum + bytes, 0),
      readaheadBytes: readahead.bytes,
      readaheadUnusedBytes: readahead.unusedBytes,
      prefetchBytes: prefetch.bytes,
      tiers,
      lastError: lastError ?? null,
    };
  }

  /** From now on, attaches are refused, pending ones too. Attached drives stay, for the exports to drain. */
  refuseNew(): void {
    this.#closed = true;
    this.#stopping.abort();
  }

  closeAll(): void {
    for (const name of [...this.#attached.keys()]) this.detach(name);
  }

  /** The position of `name` among the names, or where it would be inserted. */
  #placeOf(name: string): number {
    let [low, high] = [0, this.#names.length];
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#names[middle]! < name) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #get(name: string): Attached {
    const attached = this.#attached.get(name);
    if (!attached) throw new LazydiskError('NOT_FOUND', `no drive ${name} is attached`);
    return attached;
  }

  #info({ drive, image, attachedAt }: Attached): DriveInfo {
    const { name, imageDigest: digest, sizeBytes } = drive;
    const { places } = this.#options;
    return {
      name,
      image,
      digest,
      fuse: places.fuse(name),
      nbd: places.nbd(name),
      nbdTcp: places.nbdTcp(name),
      sizeBytes,
      attachedAt,
    };
  }
}
