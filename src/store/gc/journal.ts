/**
 * One object in the store for each run of a command that changes it as a whole: what, where, since when, how far. People
 * read it (`lazydisk gc status`); no command depends on it, since each finds out from the store itself what is left to do.
 * Writing it also tells the store's own time, which ages are compared with.
 */
import { randomBytes } from 'node:crypto';
import { hostname } from 'node:os';
import { z } from 'zod';
import { LazydiskError } from '../../errors.ts';
import { JOURNAL_PREFIX } from '../layout.ts';
import type { ObjectStore } from '../objects/object-store.ts';

const ENTRY_BYTES_MAX = 64 * 1024;

const entrySchema = z.object({
  id: z.string(),
  command: z.string(),
  host: z.string(),
  pid: z.number(),
  started: z.string(),
  updated: z.string(),
  state: z.enum(['running', 'done', 'failed']),
  /** What the command counts; numbers, and short texts. */
  details: z.record(z.string(), z.unknown()),
});

export type JournalEntry = Readonly<z.infer<typeof entrySchema>>;

export class Journal {
  /** Fit for a part of a key. */
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

  /** The store's time now, in milliseconds since 1970. */
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

/** The last `max` entries, newest first. One that cannot be read is left out. */
export async function lastEntries(objects: ObjectStore, max: number): Promise<JournalEntry[]> {
  const keys: string[] = [];
  for await (const page of objects.list(JOURNAL_PREFIX)) keys.push(...page.map(({ key }) => key));
  const entries: JournalEntry[] = [];
  for (const key of keys.sort().reverse().slice(0, max)) {
    const found = await objects.get(key, ENTRY_BYTES_MAX);
    try {
      if (found) entries.push(entrySchema.parse(JSON.parse(found.bytes.toString())));
    } catch {
      // A journal is for people: a broken entry must not hide the others.
    }
  }
  return entries;
}

/** `work` with a journal that says how it ended. */
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
