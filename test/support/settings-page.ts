/**
 * The table of settings in systemd/README.md, generated from the settings: `npm run docs` writes it, a test compares
 * it.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { defaultText, SETTING_ROWS } from '../../src/daemon/settings.ts';

const PAGE = join(import.meta.dirname, '../../systemd/README.md');
const BEGIN = '<!-- settings: made by `npm run docs` -->\n';
const END = '<!-- end of settings -->\n';

/** Returns the page as it is, and as it should be. Throws if it has no markers for the table. */
export function settingsPage(): { readonly is: string; readonly should: string } {
  const is = readFileSync(PAGE, 'utf8');
  const [from, to] = [is.indexOf(BEGIN), is.indexOf(END)];
  if (from < 0 || to < from) throw new Error(`${PAGE}: no place for the settings`);
  return { is, should: `${is.slice(0, from)}${BEGIN}\n${settingsTable()}\n${is.slice(to)}` };
}

function settingsTable(): string {
  const rows = SETTING_ROWS.map(([name, setting]) => [
    `\`${name}\``,
    setting.kind.values,
    defaultText(setting) ?? 'must be given',
    setting.help,
  ]);
  const lines = [['setting', 'value', 'default', 'what it is'], ['---', '---', '---', '---'], ...rows];
  return `${lines.map((cells) => `| ${cells.join(' | ')} |\n`).join('')}\nA new value of any of them takes a restart.\n`;
}

if (import.meta.main) writeFileSync(PAGE, settingsPage().should);
