/** The daemon as a process: its log, its signals, and what systemd is told. */
import { availableParallelism } from 'node:os';
import { EXIT_CODES } from '../cli/exit-codes.ts';
import type { ServeConfig } from './config.ts';
import { createLog, flushLog } from './log.ts';
import { Notifier } from './notify.ts';

/** Threads of libuv's pool beyond one a core: those that wait for a disk instead of decoding. */
const WAITING_THREADS = 6;

/** Serves until SIGTERM, SIGINT or SIGHUP, then drains; a second one ends the process at once. */
export async function serveUntilStopped(config: ServeConfig): Promise<void> {
  // libuv reads it when its pool is first used, which has not happened yet.
  process.env.UV_THREADPOOL_SIZE ??= String(availableParallelism() + WAITING_THREADS);
  const { Daemon } = await import('./daemon.ts');

  const log = createLog(config.logLevel);
  process.once('uncaughtException', (error) => {
    log.fatal({ error }, 'a fault of lazydisk: the daemon ends');
    // The kernel ends the FUSE connection with the process; the next start cleans up.
    void flushLog(log).then(() => process.exit(EXIT_CODES.INTERNAL));
  });
  const stopped = Promise.withResolvers<NodeJS.Signals>();
  let signals = 0;
  for (const name of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) {
    process.on(name, () => {
      if (++signals === 1) stopped.resolve(name);
      else process.exit(EXIT_CODES.ABORTED);
    });
  }

  const notifier = new Notifier(log);
  const daemon = await Daemon.start(config, log);
  const { state: _, ...status } = daemon.status();
  log.info(status, 'serving');
  await notifier.ready(`serving from ${status.store}`);

  const signal = await stopped.promise;
  log.info({ signal }, 'stopping');
  await notifier.stopping();
  await daemon.stop();
  log.info('stopped');
  await flushLog(log);
}
