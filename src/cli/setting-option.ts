/** Makes a command's option of a daemon setting. */
import { Option } from 'commander';
import { defaultText, flagText, SETTINGS, type Setting, type SettingName } from '../daemon/settings.ts';

/** `cache_size` → `--cache-size <size>`, with its help, its default in words, and its environment variable. */
export function settingOption(name: SettingName): Option {
  const setting: Setting = SETTINGS[name];
  const standard = defaultText(setting);
  const choices = setting.kind.isChoice ? `: ${setting.kind.values}` : '';
  const option = new Option(
    flagText(name),
    setting.help + choices + (standard === undefined ? '' : ` (default: ${standard})`),
  );
  if (setting.env !== undefined) option.env(setting.env);
  // A repeated flag makes a list.
  if (setting.kind.isList)
    option.argParser((text: string, before: readonly string[] | undefined) => [...(before ?? []), text]);
  return option;
}
