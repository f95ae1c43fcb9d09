/**
 * Whether a cache node or the origin is worth asking. Requests are counted in a window. A peer whose share of failures
 * in it passes a limit, or that fails several times in a row, is ejected. From then on only probes ask it, at growing
 * intervals with jitter, until one succeeds.
 */
export interface HealthOptions {
  readonly windowMs: number;
  /** Failures in a row that eject. */
  readonly failuresInRow: number;
  /** Share of failures in the window that ejects, once it holds `requestsMin`. */
  readonly failureShare: number;
  readonly requestsMin: number;
  readonly probeMinMs: number;
  readonly probeMaxMs: number;
}

/** For a cache node: ejecting one costs only hits, because placement does not change. */
const NODE_HEALTH: HealthOptions = {
  windowMs: 10_000,
  failuresInRow: 3,
  failureShare: 0.5,
  requestsMin: 20,
  probeMinMs: 250,
  probeMaxMs: 10_000,
};

export class Health {
  readonly #options: HealthOptions;
  readonly #now: () => number;
  readonly #random: () => number;
  #windowStart: number;
  #requests = 0;
  #failures = 0;
  #row = 0;
  #ejected = false;
  #probeAt = 0;
  #probeMs = 0;
  ejections = 0;

  constructor(
    options: HealthOptions = NODE_HEALTH,
    now: () => number = () => performance.now(),
    random: () => number = Math.random,
  ) {
    this.#options = options;
    this.#now = now;
    this.#random = random;
    this.#windowStart = now();
  }

  /** False while ejected: do not ask it. */
  get up(): boolean {
    return !this.#ejected;
  }

  /** True once per probe interval while ejected; the caller then asks once and reports the result. */
  takeProbe(): boolean {
    if (!this.#ejected || this.#now() < this.#probeAt) return false;
    this.#schedule();
    return true;
  }

  /** While ejected: makes a probe due now, because the peer may be back. */
  probeNow(): void {
    this.#probeAt = Math.min(this.#probeAt, this.#now());
  }

  success(): void {
    this.#roll();
    this.#requests++;
    this.#row = 0;
    if (this.#ejected) {
      this.#ejected = false;
      this.#requests = 0;
      this.#failures = 0;
    }
  }

  failure(): void {
    this.#roll();
    this.#requests++;
    this.#failures++;
    this.#row++;
    if (this.#ejected) return;
    const { failuresInRow, failureShare, requestsMin } = this.#options;
    const often = this.#requests >= requestsMin && this.#failures >= failureShare * this.#requests;
    if (this.#row < failuresInRow && !often) return;
    this.#ejected = true;
    this.ejections++;
    this.#probeMs = this.#options.probeMinMs / 2;
    this.#schedule();
  }

  #schedule(): void {
    this.#probeMs = Math.min(this.#options.probeMaxMs, this.#probeMs * 2);
    this.#probeAt = this.#now() + this.#probeMs * (0.75 + this.#random() / 2);
  }

  #roll(): void {
    if (this.#now() - this.#windowStart < this.#options.windowMs) return;
    this.#windowStart = this.#now();
    this.#requests = 0;
    this.#failures = 0;
  }
}
