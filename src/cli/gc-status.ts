/** `lazydisk gc status`: what has been put aside, who still reads it, and what the last commands did. */
import { Command } from 'commander';
import type { JournalEntry } from '../store/gc/journal.ts';
import type { AreaStatus, GcStatus } from '../store/gc/status.ts';
import { formatDuration } from '../units.ts';
import { answer, type JsonOptions, storeOption, usingStore, withJson } from './context.ts';
import { list, minute, table } from './table.ts';

export function statusCommand(): Command {
  return withJson(new Command('status'), 'gc status')
    .description("show the store's roots, what was put aside, who reads it, and what the last commands did")
    .addOption(storeOption())
    .addHelpText(
      'after',
      `
ALARM: something that was put aside is being read, so an image is in use that no name means; as long as it is read it
stays.`,
    )
    .action(async (options: JsonOptions & { readonly store?: string }) => {
      const { gcStatus } = await import('../store/gc/status.ts');
      answer(options, await usingStore(options, (store) => gcStatus(store.parts)), describe);
    });
}

const AREA_COLUMNS = ['area', 'state', 'since', 'last read', 'a purge'].map((title) => ({ title }));
const JOURNAL_COLUMNS = ['started', 'command', 'host', 'state', ''].map((title) => ({ title }));

function describe({ store, policy, areas, leases, journal }: GcStatus): string {
  const head = list([
    ['store', store],
    [
      'policy',
      `grace ${formatDuration(policy.graceMs)}, retention ${formatDuration(policy.retentionMs)}, build ${formatDuration(policy.buildMs)}`,
    ],
    [
      'leases',
      `${leases.current}, each of an image that a host has attached; ${leases.over} are over, and ${leases.strange} objects are none`,
    ],
  ]);
  const alarms = areas.filter(({ isRead }) => isRead).map(alarm);
  const parts = [`${alarms.join('')}${head}`, table(AREA_COLUMNS, areas.map(areaRow))];
  if (journal.length > 0) parts.push(table(JOURNAL_COLUMNS, journal.map(journalRow)));
  return parts.join('\n');
}

function alarm({ area, lastReadAt, lastReadHost, heldUntil }: AreaStatus): string {
  const until = heldUntil === null ? '' : `; kept until ${minute(heldUntil)} at least`;
  return `ALARM: ${area} was read by ${lastReadHost} at ${minute(lastReadAt)}: an image is in use that no name means${until}\n`;
}

function areaRow(status: AreaStatus): string[] {
  const { area, state, lastReadAt, lastReadHost, heldBecause, heldUntil } = status;
  const until = heldUntil === null ? '' : ` until ${minute(heldUntil)}`;
  const purge = heldBecause === null ? 'deletes it' : `leaves it${until}: ${heldBecause}`;
  return [
    ...[area, state, minute(status.putAsideAt ?? status.openedAt)],
    lastReadAt === null ? '–' : `${minute(lastReadAt)} by ${lastReadHost}`,
    state === 'active' ? '–' : purge,
  ];
}

function journalRow({ started, command, host, state, details }: JournalEntry): string[] {
  const counts = Object.entries(details).filter(([, value]) => value !== 0 && value !== null);
  const text = counts.map(
    ([name, value]) => `${name} ${typeof value === 'string' ? value : JSON.stringify(value)}`,
  );
  return [minute(started), command, host, state, text.join(', ').slice(0, 120)];
}
