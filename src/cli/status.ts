/** `lazydisk status`: the first place to look when something is wrong. */
import { Command } from 'commander';
import type { DaemonStatus } from '../daemon/api.ts';
import { formatDuration, formatSize } from '../units.ts';
import { answer, clientOf, type JsonOptions, type RunDirOptions, withJson, withRunDir } from './context.ts';
import { list } from './table.ts';

export function statusCommand(): Command {
  return withJson(withRunDir(new Command('status')), 'status')
    .description('show the daemon: its exports, its caches, the fleet and the origin')
    .action(async (options: JsonOptions & RunDirOptions) =>
      answer(options, await (await clientOf(options)).status(), describe),
    );
}

function describe(status: DaemonStatus): string {
  const { fleet, origin, admission } = status;
  const breaker = origin.breaker === 'closed' ? 'answers' : `fails: breaker ${origin.breaker}`;
  return list([
    ['daemon', `${status.version}, ${status.state}, process ${status.pid}, since ${status.startedAt}`],
    ['drives', `${status.drives}${admission.starting > 0 ? `, ${admission.starting} starting` : ''}`],
    ['fuse', status.fuse ?? `none: ${status.fuseProblem}`],
    ['nbd', status.nbdTcp === null ? status.nbd : [status.nbd, status.nbdTcp]],
    ['metrics', status.metrics ?? 'on the control socket alone'],
    ['memory', `${formatSize(status.memoryBytes)} for chunks`],
    ['disk cache', cacheText(status)],
    ...(status.logLinesDropped === 0
      ? []
      : ([['log', `${status.logLinesDropped} lines could not be written`]] as const)),
    ['fleet', fleet ? `${fleet.state}, ${fleet.nodesUp} of ${fleet.nodes} nodes` : 'none'],
    ['store', storeText(status)],
    ['origin', `${breaker}; ${origin.active} reads, ${origin.queued} waiting`],
    [
      'attaches',
      `${admission.waiting} waiting${admission.strained ? ', because the origin is slow' : ''}; ${admission.refused} refused so far`,
    ],
  ]);
}

function cacheText({ cacheState, cacheUsedBytes, cacheBytes }: DaemonStatus): string {
  const used = `${formatSize(cacheUsedBytes)} of ${formatSize(cacheBytes)}`;
  if (cacheState === 'up') return used;
  const why = cacheState === 'scanned' ? 'its index is rebuilt' : 'its disk fails or hangs';
  return `${cacheState}: ${why}; ${used}`;
}

function storeText({ store, retiredReads, lease, storeClock }: DaemonStatus): string[] {
  const clock = storeClock.problem === null ? [] : [storeClock.problem];
  return [store, ...retiredText(retiredReads), ...leaseText(lease), ...clock];
}

function retiredText(reads: number): string[] {
  if (reads === 0) return [];
  return [`${reads} reads of what is to be deleted: an image is used that has no name any more`];
}

function leaseText({ state, unleased, expiresInMs, problem }: DaemonStatus['lease']): string[] {
  if (state === 'none' || state === 'held') return [];
  const why = problem === null ? '' : `: ${problem}`;
  if (state === 'read-only')
    return [
      `ALARM: only read, so it does not know what is attached, and deletes it when no name means it${why}`,
    ];
  const unknown = unleased > 0 ? [`does not know of ${unleased} attached images`] : [];
  const runsOut =
    expiresInMs === null
      ? []
      : [`deletes what is attached and has no name from ${formatDuration(expiresInMs)} on`];
  return [`ALARM: cannot be told what is attached: it ${[...unknown, ...runsOut].join(', and ')}${why}`];
}
