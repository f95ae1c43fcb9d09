/** The sources of good copies for `lazydisk fsck --repair`, opened as the command line names them. */
import { ReadOnlyDiskCache } from '../chunk/disk/read-only.ts';
import type { RepairSource } from '../store/fsck/source.ts';
import { storeSource } from '../store/fsck/source.ts';
import { openStore } from '../store/open.ts';

export interface SourceOptions {
  readonly from?: readonly string[];
  readonly cache?: readonly string[];
  readonly fleet?: string;
  readonly fleetTls?: string;
  readonly fleetLogin?: string;
}

/** Nodes that are up answer in milliseconds; a single chunk must not delay a repair by more than this. */
const FLEET_TIMEOUT_MS = 2_000;

/** Opens all sources, calls `use`, closes them. Caches come first because they are nearest. Throws NOT_FOUND, USAGE. */
export async function usingSources<T>(
  options: SourceOptions,
  use: (sources: readonly RepairSource[]) => Promise<T>,
): Promise<T> {
  const sources: RepairSource[] = [];
  const closing: (() => Promise<void>)[] = [];
  try {
    for (const dir of options.cache ?? []) {
      const cache = await ReadOnlyDiskCache.open(dir);
      closing.push(() => cache.close());
      sources.push({ name: dir, get: (id) => cache.get(id) });
    }
    if (options.fleet !== undefined) sources.push(await fleetSource(options.fleet, options, closing));
    for (const url of options.from ?? []) {
      const store = await openStore(url);
      closing.push(() => store.close());
      sources.push(storeSource(store));
    }
    return await use(sources);
  } finally {
    for (const close of closing) await close();
  }
}

async function fleetSource(
  url: string,
  { fleetTls: tls, fleetLogin: loginFile }: SourceOptions,
  closing: (() => Promise<void>)[],
): Promise<RepairSource> {
  const { Fleet } = await import('../chunk/fleet/fleet.ts');
  const { pino } = await import('pino');
  const fleet = await Fleet.open(
    { url, tls, loginFile, timeoutMs: FLEET_TIMEOUT_MS },
    pino({ level: 'silent' }),
  );
  closing.push(async () => {
    fleet.close();
    await fleet.tier.close();
  });
  return {
    name: url,
    async get(id, sealedBytes) {
      const deadline = performance.now() + FLEET_TIMEOUT_MS;
      const loan = await fleet.tier.get(id, sealedBytes, { class: 'prefetch', deadline });
      if (!loan) return undefined;
      const bytes = Buffer.from(loan.bytes);
      loan.release();
      return bytes;
    },
  };
}
