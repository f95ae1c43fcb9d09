/** A setting of the daemon as an option of a command. */
import { Option } from 'commander';
import { defaultText, flagText, SETTINGS, type Setting, type SettingName } from '../daemon/settings.ts';

/** `cache_size` → `--cache-size <size>`, with its help, its default in words, and the variable that it may come from. */
export function settingOption(name: SettingName): Option {
  const setting: Setting = SETTINGS[name];
  const standard = defaultText(setting);
  const option = new Option(
    flagText(name),
    setting.help + (standard === undefined ? '' : ` (default: ${standard})`),
  );
  if (setting.env !== undefined) option.env(setting.env);
  // Given again, it is a list.
  if (setting.kind.isList)
    option.argParser((text: string, before: readonly string[] | undefined) => [...(before ?? []), text]);
  return option;
}
