/**
 * The size of libuv's thread pool: the sum of shares, so that whatever hangs in a file system keeps none from the others.
 * They are the disk cache's, those for chunks of a store that is a directory, as many as attaches and lists can take
 * there (daemon.ts), and some for all else. Decoding has threads of its own, one a core (native/compute-job.h).
 */
import { CACHE_OTHER_THREADS, CACHE_READ_THREADS } from '../chunk/disk/disk-tier.ts';
import { STORE_THREADS } from './origin.ts';

const ATTACH_THREADS = 16;
const OTHER_THREADS = 4;

/** Must be called before anything uses the pool: libuv reads its size at the first use. A size that is set stands. */
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
