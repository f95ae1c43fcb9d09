/**
 * The findings of `lazydisk fsck` for people: first a few lines on what is intact, then one table per kind of damage.
 */
import type { Counted, Damage, FsckReport, HitImage, Problem } from '../store/fsck/report.ts';
import { formatShare, formatSize } from '../units.ts';
import { list, table } from './table.ts';

/** Limits on the rows of a table and the paths in a cell; --json has all of them. */
const ROWS_MAX = 40;
const PATHS_MAX = 4;

export function describeFsck(report: FsckReport): string {
  const { names, images, manifests, openedManifests, liveChunks, readChunks, foreign } = report;
  const problems = report.problems.length + report.moreProblems;
  const lines: [string, string | string[]][] = [
    ['store', report.store],
    ['names', `${names}, of ${images} images; ${wellOr(problems, 'problems')}`],
    ['manifests', `${manifests} looked at, ${openedManifests} opened with a key`],
    ['chunks', `${liveChunks} looked for; ${wellOr(report.damagedChunks, 'damaged')}`],
    ['read and proven', `${readChunks} chunks, ${formatSize(report.readBytes)} (${sampleOf(report)})`],
  ];
  if (report.inTrash > 0)
    lines.push([
      'put aside',
      `${report.inTrash} that are alive; the next \`lazydisk gc sweep\` puts them back`,
    ]);
  lines.push(['orphans', orphans(report)]);
  const examples = foreign.examples.slice(0, PATHS_MAX);
  const noted = [`${foreign.objects} objects, ${formatSize(foreign.bytes)}`, ...examples];
  lines.push(['foreign', foreign.objects === 0 ? 'none' : noted]);
  if (report.repair) lines.push(...repairs(report.repair));
  return [
    list(lines),
    problemTable(report.problems, problems),
    damageTable(report.damaged, report.damagedChunks),
    hitTable(report.hitImages, report.hitImages.length + report.moreHitImages),
  ].join('');
}

function wellOr(count: number, what: string): string {
  return count === 0 ? 'all well' : `${count} ${what}`;
}

function sampleOf({ sample, seed }: FsckReport): string {
  return sample >= 1 ? 'all' : `a sample of ${formatShare(sample)}, seed ${seed}`;
}

function orphans({ orphans: { leased, young, garbage }, unknownImages }: FsckReport): string[] {
  const text = ({ chunks, manifests, bytes }: Counted) =>
    `${chunks} chunks and ${manifests} manifests, ${formatSize(bytes)}`;
  const lines: string[] = [];
  if (leased.manifests > 0) lines.push(`attached somewhere, so kept: ${text(leased)}`);
  lines.push(`kept for now: ${text(young)}`, `garbage, for the next sweep: ${text(garbage)}`);
  if (unknownImages > 0)
    lines.push(`among them what ${unknownImages} images have whose manifests are not whole`);
  return lines;
}

function repairs(repair: NonNullable<FsckReport['repair']>): [string, string | string[]][] {
  const { chunks, manifests, unproven, bySource, sourceErrors, dryRun } = repair;
  const sources = Object.entries(bySource).map(([source, count]) => `${count} from ${source}`);
  const failures = Object.entries(sourceErrors).map(([source, why]) => `${source}: ${why}`);
  const what = dryRun ? 'would be mended' : 'mended';
  const lines: [string, string | string[]][] = [
    [
      what,
      [
        `${chunks} chunks and ${manifests} manifests${unproven > 0 ? `, ${unproven} unproven` : ''}`,
        ...sources,
      ],
    ],
  ];
  if (failures.length > 0) lines.push(['sources that failed', failures]);
  return lines;
}

function problemTable(problems: readonly Problem[], total: number): string {
  const columns = [{ title: 'name' }, { title: 'problem' }, { title: 'good copy' }];
  const rows = problems.map((problem) => [firstOf(problem.names, 2), problem.text, copyText(problem)]);
  return tableOf(columns, rows, total);
}

function damageTable(damaged: readonly Damage[], total: number): string {
  const columns = ['damaged chunk', 'what', 'area', 'good copy', 'image', 'at', 'paths'].map((title) => ({
    title,
  }));
  const rows = damaged.flatMap((damage) =>
    damage.hits.map(({ name, indices, paths }, at) => {
      const what =
        damage.what === 'length' ? `length ${damage.foundBytes}, not ${damage.sealedBytes}` : damage.what;
      const own =
        at === 0 ? [damage.id.slice(0, 16), what, damage.area ?? '–', copyText(damage)] : ['', '', '', ''];
      return [...own, name, indices.join(','), paths ? firstOf(paths, PATHS_MAX) : ''];
    }),
  );
  return tableOf(columns, rows, Math.max(total, rows.length));
}

function hitTable(images: readonly HitImage[], total: number): string {
  const columns = [{ title: 'image hit' }, { title: 'chunks', align: 'right' as const }, { title: 'paths' }];
  const rows = images.map(({ names, digest, damagedChunks, paths, morePaths, metadata, why }) => {
    const known = paths ? firstOf(paths, PATHS_MAX, morePaths) || 'none' : `not known: ${why}`;
    const text = metadata ? `${known}; and the file system itself` : known;
    return [firstOf(names, 2) || digest, `${damagedChunks}`, text];
  });
  return tableOf(columns, rows, total);
}

function copyText(found: Problem | Damage): string {
  const { copyIn, repaired } = found;
  if (copyIn === null) return 'none found';
  const text = repaired ? `mended from ${copyIn}` : copyIn;
  return 'unproven' in found && found.unproven ? `${text}, unproven without its key` : text;
}

function firstOf(texts: readonly string[], max: number, more = 0): string {
  const rest = texts.length + more - Math.min(texts.length, max);
  return `${texts.slice(0, max).join(' ')}${rest > 0 ? ` and ${rest} more` : ''}`;
}

function tableOf(columns: Parameters<typeof table>[0], rows: readonly string[][], total: number): string {
  if (rows.length === 0) return '';
  const shown = rows.slice(0, ROWS_MAX);
  const rest = total - shown.length;
  return `\n${table(columns, shown)}${rest > 0 ? `… and ${rest} more: --json\n` : ''}`;
}
