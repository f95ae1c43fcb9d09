/** What the pages of documentation name exists: files, links, npm scripts, flags, metrics; and every metric is named. */
import { existsSync, globSync, readFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import type { Command } from 'commander';
import t from 'tap';
import { createProgram } from '../src/cli/program.ts';
import { sampleMetrics } from './support/metrics.ts';

const ROOT = resolve(import.meta.dirname, '..');
const PAGES = globSync(['*.md', '{src,test,native,systemd,.github}/**/*.md'], { cwd: ROOT }).sort();

/** Flags in the pages that belong to other programs. */
const FOREIGN_FLAGS = new Set(['--device', '--disk', '--no-install-recommends', '--unix-socket', '--verify']);
/** What the process itself and Node measure, which no page lists. */
const PROCESS_METRICS = /^(process|nodejs)_/;

function read(page: string): string {
  return readFileSync(join(ROOT, page), 'utf8');
}

/** A heading's anchor, as web views of Markdown make it. */
function anchorOf(heading: string): string {
  return heading
    .toLowerCase()
    .replace(/[^\p{L}\p{N} _-]/gu, '')
    .trim()
    .replaceAll(' ', '-');
}

function anchorsOf(page: string): Set<string> {
  return new Set([...read(page).matchAll(/^#+ (.+)$/gm)].map((match) => anchorOf(match[1]!)));
}

/** The names in a table's cell of metrics: `a{x}`, `b_total`, and `…_c`, where … is what the first name of the row begins with: `a_b_up`, `…_c` is a_b_c. */
function metricNames(cell: string): string[] {
  const names: string[] = [];
  for (const [, written] of cell.matchAll(/`([^`]+)`/g)) {
    const name = written!.replace(/\{.*$/, '');
    if (!name.startsWith('…')) names.push(name);
    else names.push(`${names[0]!.slice(0, names[0]!.lastIndexOf('_'))}${name.slice(1)}`);
  }
  return names;
}

async function everyFlag(): Promise<Set<string>> {
  const flags = new Set(['--help']);
  const visit = (command: Command): void => {
    for (const { long } of command.options) if (long) flags.add(long);
    command.commands.forEach(visit);
  };
  visit(await createProgram([]));
  return flags;
}

t.test('there are pages', async (t) => {
  for (const page of ['README.md', 'src/README.md', 'test/README.md', 'systemd/README.md'])
    t.ok(PAGES.includes(page), page);
});

t.test('every link between pages has its file and its heading', async (t) => {
  for (const page of PAGES) {
    for (const [, target] of read(page).matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^[a-z]+:/.test(target!)) continue;
      const [path, anchor] = target!.split('#') as [string, string | undefined];
      const file = path === '' ? page : join(dirname(page), path);
      t.ok(existsSync(join(ROOT, file)), `${page}: ${target}`);
      if (anchor) t.ok(anchorsOf(file).has(anchor), `${page}: the heading of ${target}`);
    }
  }
});

t.test('every path of the project that a page names exists', async (t) => {
  for (const page of PAGES) {
    for (const [path] of read(page).matchAll(/(?<![\w/.-])(?:src|test|native|systemd)\/[\w./*-]*[\w*/]/g)) {
      const found = [path, `${path}.test.ts`, `${path}.ts`, `${path}-suite.ts`].some((name) =>
        name.includes('*') ? globSync(name, { cwd: ROOT }).length > 0 : existsSync(join(ROOT, name)),
      );
      t.ok(found, `${page}: ${path}`);
    }
  }
});

t.test('every npm script that a page names exists', async (t) => {
  const { scripts } = JSON.parse(read('package.json')) as { scripts: Record<string, string> };
  for (const page of PAGES)
    for (const [, script] of read(page).matchAll(/npm run (?:--silent )?([a-z][a-z:-]*[a-z])/g))
      t.ok(scripts[script!], `${page}: npm run ${script}`);
});

t.test('every flag that a page names is one of some command', async (t) => {
  const flags = await everyFlag();
  t.ok(flags.has('--store'));
  for (const page of PAGES)
    for (const [flag] of read(page).matchAll(/(?<![\w-])--[a-z][a-z0-9-]*/g))
      t.ok(flags.has(flag) || FOREIGN_FLAGS.has(flag), `${page}: ${flag}`);
});

t.test('the table of metrics and the metrics are the same', async (t) => {
  const metrics = sampleMetrics();
  t.teardown(() => metrics.close());
  const { text } = await metrics.text();
  const exist = [...text.matchAll(/^# TYPE (\S+) /gm)]
    .map((match) => match[1]!)
    .filter((n) => !PROCESS_METRICS.test(n));
  const page = read('systemd/README.md');
  const rows = page.slice(page.indexOf('### Metrics'), page.indexOf('### Alarms'));
  const named = [...rows.matchAll(/^\| (`.*?`) +\|/gm)]
    .flatMap((row) => metricNames(row[1]!))
    .map((n) => `lazydisk_${n}`);
  t.same([...new Set(named)].sort(), exist.sort());
  for (const other of PAGES)
    for (const [name] of read(other).matchAll(/lazydisk_[a-z0-9_]*[a-z0-9]/g))
      t.ok(exist.includes(name.replace(/_(bucket|count|sum)$/, '')), `${other}: ${name}`);
});
