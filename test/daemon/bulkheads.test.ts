/** Trouble with one guest, object or disk reaches no other guest: sixteen drives beside neighbors in trouble. */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import type { DaemonStatus } from '../../src/daemon/api.ts';
import { diskWorkplace, TestDaemon } from '../support/daemon.ts';
import { Neighbourhood } from '../support/neighbours.ts';

t.test(
  'sixteen drives read right beside a hostile guest, a hung disk, a bad object and a slow origin',
  async (t) => {
    const neighbourhood = await Neighbourhood.open(t);
    const alone = await neighbourhood.measure(10, 0);
    t.match(alone, { reads: 160, wrong: 0, errors: [] });
    await neighbourhood.trouble('hostile', 'hung', 'bad', 'slow');
    const beside = await neighbourhood.measure(40, 5);
    t.match(beside, { reads: 640, wrong: 0, errors: [] });
    t.comment(`p99 alone ${alone.p99Ms.toFixed(1)} ms, beside ${beside.p99Ms.toFixed(1)} ms`);
    const { cacheState } = await neighbourhood.daemon.ask<DaemonStatus>('status');
    t.equal(cacheState, 'up');
  },
);

t.test('the thread pool has all its shares, also where a settings file is read first', async (t) => {
  const place = await diskWorkplace(t, 2);
  const config = join(place.dir, 'config.toml');
  writeFileSync(config, 'origin_tries = 2\n');
  const daemon = await TestDaemon.start(t, place, ['--config', config]);
  const tasks = `/proc/${daemon.child.pid}/task`;
  const names = readdirSync(tasks).map((id) => readFileSync(join(tasks, id, 'comm'), 'utf8').trim());
  t.ok(names.filter((name) => name === 'libuv-worker').length > 30, names.join(' '));
});
