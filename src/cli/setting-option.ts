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
  if (setting.kind.isList) option.argParser(another);
  return option;
}

/** The parser of a flag that may be given again: makes a list. */
export function another(text: string, before: readonly string[] | undefined): readonly string[] {
  return [...(before ?? []), text];
}
