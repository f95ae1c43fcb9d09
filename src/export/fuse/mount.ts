/**
 * A mount with one file per drive, which follows the registry. This is the life cycle only: the file system answers
 * requests (file-system.ts), and the addon transports them (native/fuse-channel.cc). This process must never touch the
 * mount itself, not even with a stat, because the calling thread would have to answer it.
 */
import { mkdir } from 'node:fs/promises';
import { constants as osConstants } from 'node:os';
import { join } from 'node:path';
import {
  type FuseChannel,
  fuseClose,
  fuseOpen,
  fusePush,
  fusePushed,
  fuseReply,
} from '../../../native/index.ts';
import type { BlockDevice } from '../../drive/block-device.ts';
import type { DriveRegistry } from '../../drive/registry.ts';
import { LazydiskError } from '../../errors.ts';
import { noteWork } from '../../loop-work.ts';
import type { ByteBudget } from '../byte-budget.ts';
import type { TurnBudget } from '../turn-budget.ts';
import { attach, cleanStaleMount, detach, mountPointOf } from './attach.ts';
import { FuseFileSystem, type FuseStats } from './file-system.ts';
import { Guard } from './guard.ts';
import { hasFusectl, MOUNT_SOURCE, ourMountsAt } from './mountinfo.ts';
import type { ReadHook } from './reads.ts';

export { cleanStaleMount };

/** Room for a batch of small requests; each needs 8 KiB free when it is read. */
const REQUESTS_BYTES = 64 * 1024;
/** How long reads in flight may delay an unmount; they have shorter deadlines of their own. */
const DRAIN_TIMEOUT_MS = 5000;

export interface FuseMountOptions {
  /** Created if absent. Its parent must not be inside a FUSE mount of this process. */
  readonly dir: string;
  readonly registry: DriveRegistry;
  /** Push whole chunks into the page cache after their first touch; the default where it is safe. */
  readonly pushChunks?: boolean;
  /** Shared by all exports of a process; by default the mount has its own. */
  readonly budget?: ByteBudget;
  readonly turn?: TurnBudget;
  /** Called after each read, with its cost; see ReadHook. */
  readonly onRead?: ReadHook;
  /**
   * Called when the connection ends without our asking, for example by an unmount from outside. `unmount` must still be
   * called.
   */
  readonly onLost?: (error: LazydiskError) => void;
}

/** Counters of the file system, and of the pushes that the kernel accepted or refused. */
export interface FuseMountStats extends FuseStats {
  readonly pushesSent: number;
  readonly pushesFailed: number;
}

export class FuseMount {
  /** Absolute. */
  readonly dir: string;
  readonly #registry: DriveRegistry;
  readonly #onLost: FuseMountOptions['onLost'];
  readonly #fileSystem: FuseFileSystem;
  readonly #channel: FuseChannel;
  readonly #ready = Promise.withResolvers<void>();
  readonly #added = (device: BlockDevice) => this.#fileSystem.addDrive(device);
  readonly #removed = (device: BlockDevice) => this.#fileSystem.removeDrive(device);
  #guard: Guard | undefined;
  #unmounting: Promise<void> | undefined;

  /** Mounts on `options.dir` and serves it from then on. Throws BUSY, UNAVAILABLE, UNSUPPORTED. */
  static async mount(options: FuseMountOptions): Promise<FuseMount> {
    const dir = await mountPointOf(options.dir);
    // Before any access to the directory: a stale mount there would fail or hang.
    if ((await ourMountsAt(dir)).length > 0) throw new LazydiskError('BUSY', `${dir} is mounted already`);
    await mkdir(dir, { recursive: true });
    // A push can hang when the daemon dies (guard.ts). Where nobody could end that, there are no pushes.
    const isBreakable = process.geteuid?.() === 0 || (await hasFusectl());
    const pushChunks = (options.pushChunks ?? true) && isBreakable;
    const mount = new FuseMount(dir, await attach(dir), { ...options, pushChunks });
    try {
      await mount.#ready.promise;
      const place = (await ourMountsAt(dir)).at(-1);
      if (place) mount.#guard = new Guard(place);
    } catch (error) {
      await mount.unmount();
      throw error;
    }
    return mount;
  }

  private constructor(dir: string, fd: number, options: FuseMountOptions) {
    this.dir = dir;
    this.#registry = options.registry;
    this.#onLost = options.onLost;
    const requests = Buffer.from(new ArrayBuffer(REQUESTS_BYTES));
    this.#fileSystem = new FuseFileSystem({
      requests,
      transport: { reply: (unique, errno, parts) => fuseReply(this.#channel, unique, errno, parts) },
      push: (nodeId, offset, lengthBytes, hits) =>
        fusePush(this.#channel, nodeId, offset, lengthBytes, hits?.handle),
      uid: process.geteuid?.() ?? 0,
      gid: process.getegid?.() ?? 0,
      pushChunks: options.pushChunks ?? true,
      onInit: (error) => (error ? this.#ready.reject(error) : this.#ready.resolve()),
      onRead: options.onRead,
      budget: options.budget,
      turn: options.turn,
    });
    for (const device of this.#registry.list()) this.#added(device);
    this.#registry.on('added', this.#added);
    this.#registry.on('removed', this.#removed);
    this.#channel = fuseOpen(
      fd,
      requests,
      (lengthBytes) => this.#handle(lengthBytes),
      (errno) => this.#connectionLost(errno),
    );
  }

  /** The path of drive `name`, whether it is attached or not. */
  pathOf(name: string): string {
    return join(this.dir, name);
  }

  /** Cheap: reads existing counters. */
  stats(): FuseMountStats {
    const [pushesSent, pushesFailed] = fusePushed(this.#channel);
    return { ...this.#fileSystem.stats(), pushesSent, pushesFailed };
  }

  /**
   * Unmounts, waits for the reads in flight, and ends the connection. Files that are still open return errors from then
   * on. Also resolves if it was already unmounted from outside.
   */
  unmount(): Promise<void> {
    this.#unmounting ??= this.#unmount();
    return this.#unmounting;
  }

  async #unmount(): Promise<void> {
    this.#registry.off('added', this.#added);
    this.#registry.off('removed', this.#removed);
    let failure: unknown;
    try {
      if (await this.#isMounted()) await detach(this.dir);
    } catch (error) {
      // If it was unmounted from outside just now, this is no failure. The connection is closed either way.
      if (await this.#isMounted()) failure = error;
    }
    await this.#fileSystem.reads.drain(DRAIN_TIMEOUT_MS);
    await new Promise<void>((resolve) => fuseClose(this.#channel, resolve));
    await this.#guard?.release();
    if (failure) throw failure;
  }

  /** False after it was unmounted from outside, even if another daemon has mounted there since. */
  async #isMounted(): Promise<boolean> {
    return (await ourMountsAt(this.dir)).at(-1)?.source === MOUNT_SOURCE;
  }

  #handle(lengthBytes: number): void {
    const since = performance.now();
    try {
      this.#fileSystem.handle(lengthBytes);
      noteWork('fuse', since);
    } catch {
      // The kernel does not send such bytes. The request is unknown, so it cannot be answered.
      this.#connectionLost(osConstants.errno.EPROTO);
    }
  }

  #connectionLost(errno: number): void {
    const error = new LazydiskError(
      'UNAVAILABLE',
      `the FUSE connection of ${this.dir} ended (errno ${errno})`,
    );
    this.#ready.reject(error);
    this.#fileSystem.reads.abort();
    if (!this.#unmounting) this.#onLost?.(error);
  }
}
