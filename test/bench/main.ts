/** `npm run bench [NAME …]`: every benchmark, or those named, one after another, each as a table of ratios. */
import { benchAttach } from './attach.ts';
import { benchBuild } from './build.ts';
import { benchBulkheads } from './bulkheads.ts';
import { benchFuse } from './fuse.ts';
import { benchNbd } from './nbd.ts';
import { benchReadPath } from './read-path.ts';
import { formatRows, type Row } from './row.ts';

const BENCHMARKS: Record<string, { title: string; run: () => Promise<Row[]> }> = {
  nbd: { title: 'NBD from memory, over a Unix socket', run: benchNbd },
  fuse: { title: 'FUSE file', run: benchFuse },
  'read-path': { title: 'Reads through memory and disk cache', run: benchReadPath },
  bulkheads: { title: 'Drives beside bad neighbours', run: benchBulkheads },
  attach: { title: 'Attaching drives', run: benchAttach },
  build: { title: 'Building an image', run: benchBuild },
};

const wanted = process.argv.slice(2);
const unknown = wanted.filter((name) => !BENCHMARKS[name]);
if (unknown.length > 0) {
  process.stderr.write(
    `no benchmark ${unknown.join(', ')}; choose from ${Object.keys(BENCHMARKS).join(', ')}\n`,
  );
  process.exit(2);
}
for (const [name, { title, run }] of Object.entries(BENCHMARKS)) {
  if (wanted.length > 0 && !wanted.includes(name)) continue;
  process.stderr.write(`running ${name} …\n`);
  process.stdout.write(`\n${title}\n${formatRows(await run())}`);
}
