/** `lazydisk inspect --paths`, for people: which chunks hold which path, one line per chunk. */
import type { ChunkPaths } from '../image/chunk-paths.ts';
import { formatSize } from '../units.ts';
import { table } from './table.ts';

const COLUMNS = [
  { title: 'path' },
  { title: 'chunk', align: 'right' },
  { title: 'id' },
  { title: 'sealed', align: 'right' },
  { title: 'what' },
] as const;

export function describePaths(found: ChunkPaths, withMetadata: boolean): string {
  const { paths, morePaths, unreadable, metadata } = found;
  const chunkCells = (chunk: { index: number; id: string; sealedBytes: number }, what: string) => [
    ...[`${chunk.index}`, chunk.id, formatSize(chunk.sealedBytes), what],
  ];
  const rows = paths.flatMap(({ path, chunks }) =>
    chunks.length === 0
      ? [[path, '–']]
      : chunks.map((chunk, at) => [at === 0 ? path : '', ...chunkCells(chunk, chunk.use)]),
  );
  const own = (withMetadata ? metadata : []).map((chunk) => [
    '(metadata)',
    ...chunkCells(chunk, chunk.uses.join(', ') || 'unknown'),
  ]);
  return [
    table(COLUMNS, [...own, ...rows]),
    morePaths > 0 ? `… and ${morePaths} more paths: --all, or a narrower pattern\n` : '',
    unreadable > 0 ? `${unreadable} directories cannot be read\n` : '',
  ].join('');
}
