/** What debugfs (e2fsprogs) reports about a disk: which paths have an inode or a block in which chunk. */
import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { CHUNK_BYTES } from '../../src/format/chunk-id.ts';

/** The outputs of read-only debugfs commands, in their order. */
function debugfs(disk: string, commands: readonly string[]): string[] {
  const script = `${disk}.commands`;
  writeFileSync(script, `${commands.join('\n')}\n`);
  const output = execFileSync('debugfs', ['-f', script, disk], {
    encoding: 'latin1',
    stdio: 'pipe',
    maxBuffer: 2 ** 28,
  });
  const parts = output.split(/^debugfs: .*\n/m).slice(1);
  if (parts.length !== commands.length)
    throw new Error(`${parts.length} outputs of ${commands.length} commands`);
  return parts;
}

/** Paths (byte strings, the root's is '/') by inode number. */
function pathsOfInodes(disk: string): Map<number, string[]> {
  const paths = new Map([[2, ['/']]]);
  let level: [number, string][] = [[2, '']];
  while (level.length > 0) {
    const listings = debugfs(
      disk,
      level.map(([number]) => `ls -p <${number}>`),
    );
    const below: [number, string][] = [];
    level.forEach(([, path], n) => {
      for (const [, inode, mode, name] of listings[n]!.matchAll(
        /^\/(\d+)\/(\d+)\/\d+\/\d+\/(.*)\/\d*\/$/gm,
      )) {
        // Number 0 is an empty entry.
        if (inode === '0' || name === '.' || name === '..') continue;
        const number = Number(inode);
        paths.set(number, [...(paths.get(number) ?? []), `${path}/${name}`]);
        if (mode!.startsWith('04')) below.push([number, `${path}/${name}`]);
      }
    });
    level = below;
  }
  return paths;
}

export interface SeenByDebugfs {
  /** Paths with an inode, or a block of data, extent tree or xattrs, in a chunk, in byte order. */
  readonly paths: Map<number, string[]>;
  /** Where an inode is on the disk, in bytes, by each of its paths. */
  readonly inodeAt: Map<string, number>;
}

/** Reads every inode that has a name. */
export function seenByDebugfs(disk: string, blockBytes: number): SeenByDebugfs {
  const inodes = [...pathsOfInodes(disk)];
  const answers = debugfs(
    disk,
    inodes.flatMap(([number]) => [`imap <${number}>`, `blocks <${number}>`, `stat <${number}>`]),
  );
  const found = new Map<number, Set<string>>();
  const inodeAt = new Map<string, number>();
  inodes.forEach(([, paths], n) => {
    const [imap, blocks, stat] = answers.slice(n * 3) as [string, string, string];
    const [, block, offset] = /located at block (\d+), offset (0x[0-9a-f]+)/.exec(imap)!;
    const [, xattrBlock] = /File ACL: (\d+)/.exec(stat)!;
    const all = [block!, ...(blocks.match(/\d+/g) ?? []), ...(xattrBlock === '0' ? [] : [xattrBlock!])];
    for (const path of paths) inodeAt.set(path, Number(block) * blockBytes + Number(offset));
    // A fast symlink has no block, and debugfs shows its text as if it were block numbers.
    const isFast = /^Fast link dest/m.test(stat);
    for (const one of isFast ? [block!] : all) {
      const chunk = Math.floor((Number(one) * blockBytes) / CHUNK_BYTES);
      const set = found.get(chunk) ?? new Set();
      found.set(chunk, set);
      for (const path of paths) set.add(path);
    }
  });
  return { paths: new Map([...found].map(([chunk, set]) => [chunk, [...set].sort()])), inodeAt };
}
