/** `lazydisk serve`: flags and file into a configuration, and the daemon run until it is told to stop. */
import { Command } from 'commander';
import type { RawSettings, SettingName } from '../daemon/config.ts';
import { defaultRunDir } from '../daemon/run-paths.ts';
import { withRunDir, withStore } from './context.ts';

/** Flags that are settings, as commander names them, to the names that they have in the file. */
const SETTINGS: Readonly<Record<string, SettingName>> = {
  store: 'store',
  cache: 'cache',
  cacheSize: 'cache_size',
  memory: 'memory',
  answerMemory: 'answer_memory',
  key: 'key',
  runDir: 'run_dir',
  nbdTcp: 'nbd_tcp',
  nbdConnections: 'nbd_connections',
  metrics: 'metrics',
  logLevel: 'log_level',
  originTimeout: 'origin_timeout',
  originTries: 'origin_tries',
  originConcurrency: 'origin_concurrency',
  originRate: 'origin_rate',
  originBandwidth: 'origin_bandwidth',
  startsMax: 'starts_max',
  fleet: 'fleet',
  fleetTls: 'fleet_tls',
  fleetLogin: 'fleet_login',
  fleetTimeout: 'fleet_timeout',
  cacheTimeout: 'cache_timeout',
  readTimeout: 'read_timeout',
  guestTimeout: 'guest_timeout',
  drainTimeout: 'drain_timeout',
  storeTimeout: 'store_timeout',
};

export function serveCommand(): Command {
  const command = withRunDir(withStore(new Command('serve')))
    .description('run the daemon that serves drives')
    .option('--cache <dir>', 'directory of the disk cache, for this daemon alone')
    .option(
      '--cache-size <size>',
      'hard cap of the disk cache; where there is less room, a tenth of the disk (at most 1G) stays free (default: 10G)',
    )
    .option('--memory <size>', 'memory for decoded chunks (default: 512M)')
    .option('--answer-memory <size>', 'memory for long answers that guests have not taken yet (default: 64M)')
    .option('--fleet <url>', 'memcached nodes: memcached://HOST:PORT,…?k=4&m=1 (also memcached+file:, +srv:)')
    .option('--nbd-tcp <host:port>', 'listen for NBD here too; whoever can connect can read every drive')
    .option(
      '--nbd-connections <n>',
      'NBD clients at once, on the Unix socket and over TCP each (default: 1024)',
    )
    .option('--metrics <host:port>', 'serve Prometheus metrics here, at /metrics')
    .option('--config <file>', 'TOML file with these settings, named as the flags with _ for -')
    .option('--log-level <level>', 'trace, debug, info, warn, error, fatal or silent (default: info)')
    .option('--origin-timeout <time>', 'for one try at the store (default: 5s)')
    .option('--origin-tries <n>', 'tries at the store in one read (default: 3)')
    .option('--origin-concurrency <n>', 'requests to the store at once (default: 32)')
    .option('--origin-rate <n>', 'reads of the store a second (default: no bound)')
    .option('--origin-bandwidth <size>', 'bytes from the store a second (default: no bound)')
    .option('--starts-max <n>', 'drives that may start at once while the store is slow (default: 32)')
    .option('--fleet-tls <ca>', 'TLS to the fleet, with this CA file, or "system" (default: no TLS)')
    .option('--fleet-login <file>', 'USER:PASSWORD for a fleet with an authfile, mode 0600')
    .option('--fleet-timeout <time>', 'for one try at the fleet (default: 250ms)')
    .option('--cache-timeout <time>', 'until a cache that does not answer is passed over (default: 2s)')
    .option('--read-timeout <time>', 'until a read ends in an I/O error (default: 25s)')
    .option('--guest-timeout <time>', 'when the guests themselves give up (default: 60s)')
    .option('--store-timeout <time>', 'until an attach or a list without an answer fails (default: 30s)')
    .option('--drain-timeout <time>', 'how long a stop waits for reads in flight (default: 10s)');
  return command
    .addHelpText(
      'after',
      `
Flags win over the file. It must hold that cache timeout (twice with a fleet) + origin timeout × tries < read timeout
< guest timeout.
SIGTERM or SIGINT drains, unmounts and exits with 0; a second one kills. Logs are JSON lines on stderr.

In the run directory: control.sock (the control API), nbd.sock, drives/ (one file a drive; without FUSE, NBD only).`,
    )
    .action(serve);
}

async function serve(options: Readonly<Record<string, unknown>>): Promise<void> {
  const flags: RawSettings = {};
  for (const [flag, name] of Object.entries(SETTINGS)) {
    if (options[flag] !== undefined) flags[name] = options[flag];
  }
  // Before the settings file is read: that uses the pool.
  const { sizeThreadPool } = await import('../daemon/pool-threads.ts');
  sizeThreadPool();
  const { readSettingsFile, resolveConfig } = await import('../daemon/config.ts');
  const { config: path } = options;
  const file = typeof path === 'string' ? await readSettingsFile(path) : {};
  const runDir = flags.run_dir ?? file.run_dir ?? defaultRunDir();
  const config = resolveConfig(file, flags, { run_dir: runDir });
  const { serveUntilStopped } = await import('../daemon/serve.ts');
  await serveUntilStopped(config);
}
