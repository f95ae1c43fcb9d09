/** `lazydisk images --tree`, for people. */
import type { SharingImage } from '../store/share-tree.ts';
import { formatSize } from '../units.ts';
import { table } from './table.ts';

const COLUMNS = [
  { title: 'image' },
  { title: 'stored', align: 'right' },
  { title: 'shared', align: 'right' },
  { title: 'adds', align: 'right' },
  { title: '' },
] as const;

export function describeTree(images: readonly SharingImage[]): string {
  if (images.length === 0) return 'no images\n';
  const branches = branchesOf(images.map(({ depth }) => depth));
  const rows = images.map(({ names, stored, shared, added, depth, problem }, at) => [
    branches[at]! + names.join(' '),
    ...(problem === null
      ? [formatSize(stored.sealedBytes), depth > 0 ? formatSize(shared.sealedBytes) : '–']
      : ['–', '–']),
    problem === null ? formatSize(added.sealedBytes) : '–',
    problem ?? '',
  ]);
  const total = images.reduce((sum, { added }) => sum + added.sealedBytes, 0);
  return `${table(COLUMNS, rows)}${images.length} images, ${formatSize(total)} stored\n`;
}

/** Returns the lines drawn in front of the names of a tree, given the depths of its nodes in order. */
function branchesOf(depths: readonly number[]): string[] {
  /** By depth: whether another node of that depth follows before a shallower one. */
  const goesOn: boolean[] = [];
  return depths
    .toReversed()
    .map((depth) => {
      const lines = Array.from({ length: Math.max(0, depth - 1) }, (_, at) =>
        goesOn[at + 1] ? '│  ' : '   ',
      );
      const own = depth === 0 ? '' : goesOn[depth] ? '├─ ' : '└─ ';
      goesOn.length = depth;
      goesOn[depth] = true;
      return lines.join('') + own;
    })
    .reverse();
}
