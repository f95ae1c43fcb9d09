/**
 * The size of libuv's thread pool: the sum of shares, so that threads that hang in one file system do not starve the
 * others. There are shares for the disk cache, for chunks of a store that is a directory, for attaches and lists of
 * such a store (daemon.ts), and for everything else. Decoding has its own threads, one per core (native/compute-job.h).
 */
import { CACHE_OTHER_THREADS, CACHE_READ_THREADS } from '../chunk/disk/disk-tier.ts';
import { STORE_THREADS } from './origin.ts';

const ATTACH_THREADS = 16;
const OTHER_THREADS = 4;

/**
 * Must be called before anything uses the pool, because libuv reads its size at the first use. A size already set is
 * kept.
 */
export function sizeThreadPool(): void {
  const threads =
    CACHE_READ_THREADS +
    CACHE_OTHER_THREADS +
    STORE_THREADS.reads +
    STORE_THREADS.hung +
    ATTACH_THREADS +
    OTHER_THREADS;
  process.env.UV_THREADPOOL_SIZE ??= String(threads);
}
