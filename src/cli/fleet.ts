/** `lazydisk fleet status` and `lazydisk fleet where CHUNK|IMAGE` */
import { Command } from 'commander';
import type { FleetInfo, FleetPlaces } from '../daemon/api.ts';
import { formatDuration, formatShare, formatSize } from '../units.ts';
import { answer, clientOf, type JsonOptions, type RunDirOptions, withJson, withRunDir } from './context.ts';
import { list, table } from './table.ts';

type Options = JsonOptions & RunDirOptions;

export function fleetCommand(): Command {
  const status = withJson(withRunDir(new Command('status')), 'fleet status')
    .description('show the nodes of the cache fleet, as this daemon sees them')
    .addHelpText(
      'after',
      `
A node that is "out" failed too often: it is only probed, and its shards are made up for by parity.`,
    )
    .action(async (options: Options) =>
      answer(options, await (await clientOf(options)).fleet(), describeFleet),
    );
  const where = withJson(withRunDir(new Command('where')), 'fleet where')
    .description('ask the nodes which of them holds which shards')
    .argument('<chunk|image>', 'a chunk id (64 hex digits), NAME[:TAG] or sha256:…')
    .addHelpText('after', '\nIn JSON, "shards" are those of a single chunk, and none of an image.')
    .action(async (what: string, options: Options) =>
      answer(options, await (await clientOf(options)).fleetPlaces(what), describePlaces),
    );
  return new Command('fleet').description('look at the shared cache').addCommand(status).addCommand(where);
}

const right = (title: string) => ({ title, align: 'right' as const });

function describeFleet(fleet: FleetInfo): string {
  const { nodes, k, m } = fleet;
  const head = list([
    ['fleet', fleet.url],
    ['code', `${k}+${m}: any ${k} of ${k + m} shards give the chunk`],
    ['state', `${fleet.state}, ${nodes.filter(({ up }) => up).length} of ${nodes.length} nodes`],
    ['rebuilt from parity', `${fleet.reconstructions} chunks; ${fleet.repairs} lost shards put back`],
    ['filled', `${fleet.fills} chunks; ${fleet.fillsDropped} dropped`],
    ['leases', `${fleet.leaseWins} won, ${fleet.leaseWaits} waited for`],
  ]);
  const columns = [
    ...[{ title: 'node' }, { title: 'zone' }, right('weight'), { title: 'state' }],
    ...[right('requests'), right('errors'), right('read'), right('written'), right('p50'), right('p99')],
    { title: 'last error' },
  ];
  const rows = nodes.map((node) => [
    ...[node.name, node.zone ?? '–', `${node.weight}`, !node.up ? 'out' : node.connected ? 'up' : 'not used'],
    ...[`${node.requests}`, `${node.errors}`, formatSize(node.bytesRead), formatSize(node.bytesWritten)],
    ...[formatDuration(node.p50Ms), formatDuration(node.p99Ms), node.lastError ?? ''],
  ]);
  return `${head}\n${table(columns, rows)}`;
}

function describePlaces({ chunks, readable, nodes, shards }: FleetPlaces): string {
  if (shards.length > 0) {
    const columns = [{ title: 'node' }, { title: 'state' }, right('shard'), right('bytes'), { title: 'why' }];
    const rows = shards.map(({ node, state, index, bytes, why }) => [
      ...[node, state, `${index ?? '–'}`, bytes === null ? '–' : formatSize(bytes), why ?? ''],
    ]);
    return `${table(columns, rows)}\n${readable > 0 ? 'the fleet can give this chunk\n' : 'too few shards: it would come from the origin\n'}`;
  }
  const columns = [
    { title: 'node' },
    { title: 'zone' },
    right('shards'),
    right('of'),
    right('bytes'),
    right('no answer'),
  ];
  const rows = nodes.map(({ node, zone, there, expected, bytes, unreachable }) => [
    ...[node, zone ?? '–', `${there}`, `${expected}`, formatSize(bytes), `${unreachable}`],
  ]);
  const share = chunks === 0 ? 1 : readable / chunks;
  return `${table(columns, rows)}\n${readable} of ${chunks} chunks can be read from the fleet (${formatShare(share)})\n`;
}
