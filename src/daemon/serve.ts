/** The daemon as a process: its log, its signals, and its notifications to systemd. */
import { flushCompileCache } from 'node:module';
import { exitNow } from '../../native/index.ts';
import type { ServeConfig } from './config.ts';
import { createLog, flushLog } from './log.ts';
import { LogStream } from './log-stream.ts';
import { Notifier } from './notify.ts';

/**
 * How long a stop may take beyond the drain: a part that waits for a hanging disk must not keep a dead daemon alive.
 */
const STOP_GRACE_MS = 10_000;

const SIGNALS = ['SIGTERM', 'SIGINT', 'SIGHUP'] as const;

/**
 * Serves until SIGTERM, SIGINT or SIGHUP, then drains and exits; a second signal kills the process at once. Throws if
 * the daemon cannot start.
 */
export async function serveUntilStopped(config: ServeConfig): Promise<never> {
  const { Daemon } = await import('./daemon.ts');

  const stream = new LogStream();
  const log = createLog(config.logLevel, stream);
  process.once('uncaughtException', (error) => {
    log.fatal({ error }, 'a fault of lazydisk: the daemon ends');
    // The kernel ends the FUSE connection with the process; the next start cleans up.
    void flushLog(stream).then(() => exitNow(1));
  });
  // By default, Node writes its warnings to stderr synchronously.
  process.removeAllListeners('warning').on('warning', (error) => log.warn({ error }, 'a warning of Node'));
  const stopped = Promise.withResolvers<NodeJS.Signals>();
  for (const name of SIGNALS) {
    process.once(name, () => {
      stopped.resolve(name);
      // From here on, each of these signals has its default action: it kills the process.
      for (const other of SIGNALS) process.removeAllListeners(other);
    });
  }

  const notifier = new Notifier(log);
  const daemon = await Daemon.start(config, log, stream);
  // Every log line has the process id already.
  const { state: _, pid: __, ...status } = daemon.status();
  log.info(status, 'serving');
  notifier.ready(`serving from ${status.store}`);
  // Node keeps what it compiled when a process ends by itself, which this one never does: the next start takes it from there.
  flushCompileCache();

  const signal = await stopped.promise;
  log.info({ signal }, 'stopping');
  notifier.stopping();
  const late = setTimeout(() => {
    log.error('a part does not stop: the daemon ends without it');
    void flushLog(stream).then(() => exitNow(1));
  }, config.drainTimeoutMs + STOP_GRACE_MS);
  await daemon.stop();
  clearTimeout(late);
  log.info('stopped');
  await flushLog(stream);
  // Everything is closed. A normal exit would wait for the thread pool, where a thread may hang in a store's file
  // system.
  exitNow(0);
}
