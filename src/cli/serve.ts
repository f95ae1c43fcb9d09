/** `lazydisk serve`: merges flags and file into a configuration and runs the daemon until it is stopped. */
import { Command } from 'commander';
import { type RawSettings, SETTING_ROWS } from '../daemon/settings.ts';
import { settingOption } from './setting-option.ts';

export function serveCommand(): Command {
  const command = new Command('serve').description('run the daemon that serves drives');
  for (const [name] of SETTING_ROWS) command.addOption(settingOption(name));
  return command
    .option('--config <file>', 'TOML file with these settings, named as the flags with _ for -')
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

async function serve(_: unknown, command: Command): Promise<void> {
  const flags: RawSettings = {};
  for (const [name] of SETTING_ROWS)
    flags[name] = command.getOptionValue(settingOption(name).attributeName());
  // Must come before the settings file is read, because that uses the pool.
  const { sizeThreadPool } = await import('../daemon/pool-threads.ts');
  sizeThreadPool();
  const { readSettingsFile, resolveConfig } = await import('../daemon/config.ts');
  const path = command.getOptionValue('config') as string | undefined;
  const config = resolveConfig(path === undefined ? {} : await readSettingsFile(path), flags);
  const { serveUntilStopped } = await import('../daemon/serve.ts');
  await serveUntilStopped(config);
}
