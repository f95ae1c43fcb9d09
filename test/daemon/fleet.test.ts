/** A daemon with a fleet of real memcached nodes, through the command line and its exports. */
import { execFile } from 'node:child_process';
import { chmod, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import t from 'tap';
import type { DaemonStatus, DriveInfo, DriveStat, FleetInfo, FleetPlaces } from '../../src/daemon/api.ts';
import { diskWorkplace, lazydisk, TestDaemon } from '../support/daemon.ts';
import { rootDir } from '../support/dir-store.ts';
import { Memcached } from '../support/memcached.ts';
import { skipWithout } from '../support/tools.ts';

const run = promisify(execFile);

function urlOf(nodes: readonly Memcached[], code = 'k=4&m=1'): string {
  return `memcached://${nodes.map(({ port }) => `127.0.0.1:${port}`).join(',')}?${code}`;
}

async function until(condition: () => Promise<boolean>): Promise<void> {
  while (!(await condition())) await new Promise((resolve) => setTimeout(resolve, 50));
}

t.test(
  'a host fills the fleet, another reads from it, and a dead node costs nothing but its shards',
  async (t) => {
    if (skipWithout(t, 'memcached', 'nbdcopy')) return;
    const nodes = await Memcached.cluster(5);
    t.teardown(() => Promise.all(nodes.map((node) => node.kill())));
    const place = await diskWorkplace(t, 24);
    const first = await TestDaemon.start(t, place, ['--fleet', urlOf(nodes)]);
    const drive = await first.ask<DriveInfo>('attach', 'app:1');
    const copy = join(place.dir, 'copy');
    await run('nbdcopy', [drive.nbd, copy]);
    t.ok(place.disk.equals(await readFile(copy)));
    await until(async () => (await first.ask<FleetInfo>('fleet', 'status')).fills === 18);
    await until(async () => (await first.ask<FleetPlaces>('fleet', 'where', 'app:1')).readable === 18);

    // Another host, with its own run directory and cache. It cannot reach the store.
    const other = { ...place, runDir: join(place.dir, 'run2'), cache: join(place.dir, 'cache2') };
    const second = await TestDaemon.start(t, other, ['--fleet', urlOf(nodes)]);
    const away = await second.ask<DriveInfo>('attach', 'app:1');
    await rm(join(rootDir(place.storeDir), 'chunks'), { recursive: true });
    await nodes[2]!.kill();
    await run('nbdcopy', [away.nbd, copy]);
    t.ok(place.disk.equals(await readFile(copy)), 'the right bytes without a node and without the store');
    const stat = await second.ask<DriveStat>('stat', away.name);
    t.equal(stat.tiers.find(({ tier }) => tier === 'fleet')?.chunks, 18);
    t.equal(
      stat.tiers.find(({ tier }) => tier === 'origin'),
      undefined,
    );

    const fleet = await second.ask<FleetInfo>('fleet', 'status');
    t.match(fleet, { k: 4, m: 1, state: 'up' });
    t.ok(fleet.reconstructions > 0, 'parity made up for it');
    const dead = fleet.nodes.find(({ name }) => name === `127.0.0.1:${nodes[2]!.port}`);
    t.match(dead, { up: false, lastError: /./ });
    t.match(await second.ask<DaemonStatus>('status'), { fleet: { state: 'up', nodes: 5, nodesUp: 4 } });

    const id = place.image.manifest.ref(0).id;
    const where = await second.ask<FleetPlaces>('fleet', 'where', id);
    t.equal(where.shards.length, 5);
    t.same(
      where.shards
        .filter(({ state }) => state === 'there')
        .map(({ index }) => index)
        .sort(),
      [0, 1, 2, 3, 4].filter((rank) => where.shards[rank]!.state === 'there'),
      'a shard lies with the node of its rank',
    );
    const text = await lazydisk(['fleet', 'status', '--run-dir', other.runDir]);
    t.match(text.stdout, /4\+1: any 4 of 5/);
    t.match(text.stdout, new RegExp(`127\\.0\\.0\\.1:${nodes[2]!.port} .* out `));
    t.match(
      (await lazydisk(['fleet', 'where', id, '--run-dir', other.runDir])).stdout,
      /can give this chunk/,
    );
    t.match(
      (await lazydisk(['fleet', 'where', 'app:1', '--run-dir', other.runDir])).stdout,
      /18 of 18 chunks/,
    );
    t.match((await lazydisk(['status', '--run-dir', other.runDir])).stdout, /fleet +up, 4 of 5 nodes/);
    const metrics = await run('curl', [
      '-s',
      '--unix-socket',
      join(other.runDir, 'control.sock'),
      'http://d/metrics',
    ]);
    t.match(metrics.stdout, /^lazydisk_tier_reads_total\{tier="fleet",result="hit",class="demand"\} \d+$/m);
    t.match(
      metrics.stdout,
      new RegExp(`^lazydisk_fleet_node_up\\{node="127.0.0.1:${nodes[2]!.port}"\\} 0$`, 'm'),
    );
  },
);

t.test('with the whole fleet down it serves from the origin, and says so once', async (t) => {
  if (skipWithout(t, 'memcached', 'nbdcopy')) return;
  const nodes = await Memcached.cluster(2);
  t.teardown(() => Promise.all(nodes.map((node) => node.kill())));
  const place = await diskWorkplace(t, 8);
  const daemon = await TestDaemon.start(t, place, ['--fleet', urlOf(nodes, 'k=2&m=0')]);
  for (const node of nodes) await node.kill();
  const drive = await daemon.ask<DriveInfo>('attach', 'app:1');
  const copy = join(place.dir, 'copy');
  await run('nbdcopy', [drive.nbd, copy]);
  t.ok(place.disk.equals(await readFile(copy)));
  await daemon.logged(({ msg, level }) => level === 'error' && /no node of the fleet answers/.test(`${msg}`));
  t.match(await daemon.ask('status'), {
    fleet: { state: 'down', nodesUp: 0 },
    origin: { breaker: 'closed' },
  });

  for (const node of nodes) await node.start();
  // Only a read contacts nodes, and probes one that is out.
  await until(async () => {
    await daemon.ask('fleet', 'where', 'app:1');
    return (await daemon.ask<DaemonStatus>('status')).fleet!.nodesUp === 2;
  });
  await daemon.logged(({ msg }) => /answers again/.test(`${msg}`));
  t.equal(daemon.log.filter(({ msg }) => /no node of the fleet/.test(`${msg}`)).length, 1);
});

t.test('a list of nodes in a file is read again when it changes', async (t) => {
  if (skipWithout(t, 'memcached')) return;
  const nodes = await Memcached.cluster(3);
  t.teardown(() => Promise.all(nodes.map((node) => node.kill())));
  const place = await diskWorkplace(t, 4);
  const list = join(place.dir, 'nodes');
  const line = (node: Memcached, n: number) => `127.0.0.1:${node.port} name=n${n} zone=z${n}`;
  const daemon = await TestDaemon.start(t, place, ['--fleet', `memcached+file://${list}?k=1&m=1`]);
  t.match(await daemon.ask('status'), { fleet: { nodes: 0 } }, 'not there yet, and no reason not to serve');
  await daemon.logged(({ msg }) => /no list of nodes yet/.test(`${msg}`));
  await writeFile(list, `# the fleet\n${nodes.slice(0, 2).map(line).join('\n')}\n`);
  await until(async () => (await daemon.ask<DaemonStatus>('status')).fleet!.nodes === 2);
  await writeFile(list, 'not a node!\n');
  await daemon.logged(({ msg }) => /keeping the last list of nodes/.test(`${msg}`));
  t.match(await daemon.ask('fleet', 'status'), { nodes: [{ name: 'n0', zone: 'z0' }, { name: 'n1' }] });
  await writeFile(list, nodes.map(line).join('\n'));
  await until(async () => (await daemon.ask<DaemonStatus>('status')).fleet!.nodes === 3);
});

t.test(
  'a login that others can read, or none, is refused; without a fleet its commands say so',
  async (t) => {
    const place = await diskWorkplace(t, 4);
    const login = join(place.dir, 'login');
    const words = ['serve', '--store', place.store, '--key', place.key, '--run-dir', place.runDir];
    const serve = [
      ...words,
      '--cache',
      place.cache,
      '--fleet',
      'memcached://127.0.0.1:1',
      '--fleet-login',
      login,
    ];
    t.match(await lazydisk(serve), { code: 5, stderr: /fleet login/ });
    await writeFile(login, 'user:secret\n');
    await chmod(login, 0o644);
    t.match(await lazydisk(serve), { code: 5, stderr: /others can read it/ });
    await chmod(login, 0o600);
    await writeFile(login, 'no password');
    const wrong = await lazydisk(serve);
    t.match(wrong, { code: 2, stderr: /USER:PASSWORD/ });
    t.notMatch(wrong.stderr, /no password/);

    const daemon = await TestDaemon.start(t, place);
    t.match(await daemon.ask('status'), { fleet: null });
    t.match(await lazydisk(['fleet', 'status', '--run-dir', place.runDir]), { code: 3, stderr: /--fleet/ });
    t.match(await lazydisk(['status', '--run-dir', place.runDir]), { code: 0, stdout: /fleet +none/ });
  },
);
