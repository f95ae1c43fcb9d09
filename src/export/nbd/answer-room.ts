/**
 * The memory that one client's long answers hold, out of the budget that all exports share. A client that holds memory
 * which others wait for, and takes nothing of its answers, is disconnected.
 */
import type { BlockDevice, PinnedBytes } from '../../drive/block-device.ts';
import { type ByteBudget, type HeldBytes, SHORT_READ_BYTES } from '../byte-budget.ts';

export interface AnswerRoomOptions {
  /** Aborts reads that wait for room. */
  readonly signal: AbortSignal;
  /** How long a client may take nothing while others wait. */
  readonly stallMs: number;
  /** Whether the client has something to take. */
  isOwed(): boolean;
  /** Called when the client must be disconnected. */
  onStall(): void;
}

export class AnswerRoom {
  readonly #device: BlockDevice;
  readonly #budget: ByteBudget;
  readonly #options: AnswerRoomOptions;
  /** The number of answers that hold memory of the budget. */
  #held = 0;
  /** How often the kernel has taken bytes. */
  #moves = 0;
  #watch: NodeJS.Timeout | undefined;

  constructor(device: BlockDevice, budget: ByteBudget, options: AnswerRoomOptions) {
    this.#device = device;
    this.#budget = budget;
    this.#options = options;
  }

  /** Called when the client has taken bytes. */
  moved(): void {
    this.#moves++;
  }

  close(): void {
    clearInterval(this.#watch);
  }

  /** The bytes, if they are in memory and there is room for the answer. */
  tryRead(offset: number, lengthBytes: number): PinnedBytes | undefined {
    if (lengthBytes <= SHORT_READ_BYTES) return this.#device.tryRead(offset, lengthBytes);
    const held = this.#budget.tryTake(this.#device, lengthBytes);
    if (!held) return undefined;
    const bytes = this.#device.tryRead(offset, lengthBytes);
    if (!bytes) held.release();
    return bytes && this.holding(bytes, held);
  }

  /** The result of `fetch`, called once there is room for it; the room is given back when the bytes are released. */
  async read(lengthBytes: number, deadline: number, fetch: () => Promise<PinnedBytes>): Promise<PinnedBytes> {
    if (lengthBytes <= SHORT_READ_BYTES) return fetch();
    const held = await this.take(lengthBytes, deadline);
    try {
      return this.holding(await fetch(), held);
    } catch (error) {
      held.release();
      throw error;
    }
  }

  /** Rejects as ByteBudget does. */
  take(lengthBytes: number, deadline: number): Promise<HeldBytes> {
    const { signal } = this.#options;
    return this.#budget.take(this.#device, lengthBytes, { deadline, signal });
  }

  /** `bytes`, whose release also releases `held`. */
  holding(bytes: PinnedBytes, held: HeldBytes): PinnedBytes {
    this.#held++;
    this.#watch ??= this.#watchForStall();
    return {
      parts: bytes.parts,
      release: () => {
        this.#held--;
        bytes.release();
        held.release();
      },
    };
  }

  #watchForStall(): NodeJS.Timeout {
    const { stallMs, isOwed, onStall } = this.#options;
    let moves = -1;
    return setInterval(() => {
      if (this.#held === 0) {
        clearInterval(this.#watch);
        this.#watch = undefined;
      } else if (moves === this.#moves && isOwed() && this.#budget.waiters > 0) {
        onStall();
      }
      moves = this.#moves;
    }, stallMs);
  }
}
