/**
 * A journal object in the store for each run of a command that changes the whole store: what, where, since when, how
 * far. It is for people (`lazydisk gc status`); no command depends on it, because each works out what is left to do
 * from the store itself. Writing the journal also yields the store's own time, which object ages are compared with.
 */
import { randomBytes } from 'node:crypto';
import { hostname } from 'node:os';
import { LazydiskError } from '../../errors.ts';
import type { ObjectStore } from '../objects/object-store.ts';
import { JOURNAL_PREFIX } from '../roots/layout.ts';

const ENTRY_BYTES_MAX = 64 * 1024;

export interface JournalEntry {
  readonly id: string;
  readonly command: string;
  readonly host: string;
  readonly pid: number;
  readonly started: string;
  readonly updated: string;
  readonly state: 'running' | 'done' | 'failed';
  /** The command's counts: numbers and short texts. */
  readonly details: Readonly<Record<string, unknown>>;
}

export class Journal {
  /** Valid as part of a key; sorts by time. */
  readonly id: string;
  readonly #objects: ObjectStore;
  readonly #command: string;
  readonly #started = new Date().toISOString();

  private constructor(objects: ObjectStore, command: string) {
    this.id = `${this.#started.replace(/[-:.]/g, '')}${randomBytes(4).toString('hex')}`;
    this.#objects = objects;
    this.#command = command;
  }

  static async begin(objects: ObjectStore, command: string): Promise<Journal> {
    const journal = new Journal(objects, command);
    await journal.write('running', {});
    return journal;
  }

  /** The store's current time, in milliseconds since 1970. */
  async storeNowMs(): Promise<number> {
    await this.write('running', {});
    const found = await this.#objects.head(this.#key);
    if (!found)
      throw new LazydiskError('CORRUPT', `${this.#objects.url}: ${this.#key} was written and is not there`);
    return found.modifiedMs;
  }

  async write(state: JournalEntry['state'], details: JournalEntry['details']): Promise<void> {
    const entry: JournalEntry = {
      id: this.id,
      command: this.#command,
      host: hostname(),
      pid: process.pid,
      started: this.#started,
      updated: new Date().toISOString(),
      state,
      details,
    };
    await this.#objects.put(this.#key, Buffer.from(`${JSON.stringify(entry)}\n`));
  }

  get #key(): string {
    return `${JOURNAL_PREFIX}${this.id}.json`;
  }
}

/** The last `max` entries, newest first. Unreadable entries are left out. */
export async function lastEntries(objects: ObjectStore, max: number): Promise<JournalEntry[]> {
  const keys: string[] = [];
  for await (const page of objects.list(JOURNAL_PREFIX)) keys.push(...page.map(({ key }) => key));
  const entries: JournalEntry[] = [];
  for (const key of keys.sort().reverse().slice(0, max)) {
    const found = await objects.get(key, ENTRY_BYTES_MAX);
    // A journal is for people: a broken entry must not hide the others.
    const entry = found && parseEntry(found.bytes.toString());
    if (entry) entries.push(entry);
  }
  return entries;
}

function parseEntry(text: string): JournalEntry | undefined {
  let entry: JournalEntry | null;
  try {
    entry = JSON.parse(text) as JournalEntry | null;
  } catch {
    return undefined;
  }
  if (typeof entry !== 'object' || entry === null) return undefined;
  const { id, command, host, started, updated, state, details } = entry;
  const hasTexts = [id, command, host, started, updated].every((value) => typeof value === 'string');
  const isState = ['running', 'done', 'failed'].includes(state);
  const hasDetails = typeof details === 'object' && details !== null;
  return hasTexts && isState && hasDetails && typeof entry.pid === 'number' ? entry : undefined;
}

/** Runs `work` with a journal that records its outcome. */
export async function journaled<T extends object>(
  objects: ObjectStore,
  command: string,
  work: (journal: Journal) => Promise<T>,
): Promise<T> {
  const journal = await Journal.begin(objects, command);
  try {
    const report = await work(journal);
    await journal.write('done', { ...(report as Record<string, unknown>) });
    return report;
  } catch (error) {
    await journal.write('failed', { error: String((error as Error).message) }).catch(() => undefined);
    throw error;
  }
}
