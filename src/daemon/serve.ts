/** The daemon as a process: its log, its signals, and what systemd is told. */
import { availableParallelism } from 'node:os';
import type { ServeConfig } from './config.ts';
import { createLog, flushLog } from './log.ts';
import { Notifier } from './notify.ts';

/** Threads of libuv's pool beyond one a core: those that wait for a disk instead of decoding. */
const WAITING_THREADS = 6;

const SIGNALS = ['SIGTERM', 'SIGINT', 'SIGHUP'] as const;

/** Serves until SIGTERM, SIGINT or SIGHUP, then drains; a second one kills the process at once. */
export async function serveUntilStopped(config: ServeConfig): Promise<void> {
  // libuv reads it when its pool is first used, which has not happened yet.
  process.env.UV_THREADPOOL_SIZE ??= String(availableParallelism() + WAITING_THREADS);
  const { Daemon } = await import('./daemon.ts');

  const log = createLog(config.logLevel);
  process.once('uncaughtException', (error) => {
    log.fatal({ error }, 'a fault of lazydisk: the daemon ends');
    // The kernel ends the FUSE connection with the process; the next start cleans up.
    void flushLog(log).then(() => process.exit(1));
  });
  const stopped = Promise.withResolvers<NodeJS.Signals>();
  for (const name of SIGNALS) {
    process.once(name, () => {
      stopped.resolve(name);
      // From here on all of them kill, as they do by nature: a tidy exit waits for the thread pool, and a thread may
      // hang in a store's file system.
      for (const other of SIGNALS) process.removeAllListeners(other);
    });
  }

  const notifier = new Notifier(log);
  const daemon = await Daemon.start(config, log);
  // Every line has the process id.
  const { state: _, pid: __, ...status } = daemon.status();
  log.info(status, 'serving');
  await notifier.ready(`serving from ${status.store}`);

  const signal = await stopped.promise;
  log.info({ signal }, 'stopping');
  await notifier.stopping();
  await daemon.stop();
  log.info('stopped');
  await flushLog(log);
}
