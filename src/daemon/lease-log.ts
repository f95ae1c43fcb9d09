/** Logs the state of the lease (src/store/lease-keeper.ts): when it becomes a problem, and when the problem is over. */
import type { LeaseStats } from '../store/lease-keeper.ts';
import { formatDuration } from '../units.ts';
import type { Logger } from './log.ts';

/** Returns a function to call whenever the state of the lease changes. */
export function leaseLog(log: Logger): (stats: LeaseStats) => void {
  let isAlarmed = false;
  return ({ state, images, unleased, expiresInMs, problem }) => {
    const figures = { images, unleased, expiresInMs, problem };
    if (state === 'late') {
      const left = expiresInMs === null ? '' : `, in ${formatDuration(expiresInMs)} at the earliest`;
      log.error(
        figures,
        `the store cannot be told what is attached: it may be deleted when no name means it${left}`,
      );
    } else if (state === 'read-only')
      log.warn(
        figures,
        'the store is only read, so it is not told what is attached: what no name means any more is deleted in time',
      );
    else if (isAlarmed && state === 'held') log.info(figures, 'the store knows what is attached again');
    isAlarmed = state === 'late' || state === 'read-only';
  };
}
