/**
 * Where the list of cache nodes comes from, and how it is kept up to date without a restart:
 *
 *     memcached://h1:p1,h2:p2?k=4&m=1            the nodes themselves
 *     memcached+file:///etc/lazydisk/fleet?k=4   a file, one node per line, read again when it changes
 *     memcached+srv://_memcached._tcp.cache.example?k=4   DNS SRV records, queried again every interval
 *
 * A line of the file is `host:port [name=NAME] [zone=ZONE] [weight=NUMBER]`; `#` starts a comment. A list that is
 * empty, malformed or unreachable changes nothing: the fleet keeps the last good one and logs a warning.
 */

import { resolveSrv } from 'node:dns/promises';
import { readFile, stat } from 'node:fs/promises';
import { errorText, LazydiskError } from '../../errors.ts';
import type { NodeAddress } from './node.ts';
import { type Code, checkCode } from './shard.ts';

const NODES_MAX = 1000;
const FILE_BYTES_MAX = 1024 * 1024;
const DEFAULT_PORT = 11211;
const FILE_POLL_MS = 1_000;
const SRV_POLL_MS = 30_000;

export interface FleetUrl {
  readonly code: Code;
  /** The current list. Throws UNAVAILABLE or USAGE. */
  read(): Promise<NodeAddress[]>;
  /** How often `read` is worth calling again; 0: never. */
  readonly pollMs: number;
  /** For messages. */
  readonly text: string;
}

/** Reads a fleet's URL. Throws USAGE. */
export function parseFleetUrl(text: string): FleetUrl {
  const match = /^memcached(\+file|\+srv)?:\/\/([^?]+)(?:\?(.*))?$/.exec(text);
  if (!match)
    throw usage(text, 'want memcached://HOST:PORT,…, memcached+file://PATH or memcached+srv://NAME');
  const [, kind, where] = match;
  const query = new URLSearchParams(match[3] ?? '');
  for (const name of query.keys())
    if (name !== 'k' && name !== 'm') throw usage(text, `unknown parameter ${name}`);
  const code = { k: Number(query.get('k') ?? 4), m: Number(query.get('m') ?? 1) };
  checkCode(code);
  if (kind === '+file') return { code, read: () => readNodeFile(where!), pollMs: FILE_POLL_MS, text };
  if (kind === '+srv') return { code, read: () => readSrv(where!), pollMs: SRV_POLL_MS, text };
  const nodes = checkNodes(where!.split(',').map((word) => parseNodeLine(word)));
  return { code, read: async () => nodes, pollMs: 0, text };
}

/**
 * Calls `onChange` with every list that differs from the last, and `onWarning` when a list cannot be read. Returns a
 * function that stops it.
 */
export function watchNodes(
  url: FleetUrl,
  first: readonly NodeAddress[],
  onChange: (nodes: NodeAddress[]) => void,
  onWarning: (text: string) => void,
): () => void {
  if (url.pollMs === 0) return () => {};
  let last = JSON.stringify(first);
  let warned = '';
  let reading = false;
  const timer = setInterval(async () => {
    if (reading) return;
    reading = true;
    try {
      const nodes = await url.read();
      const now = JSON.stringify(nodes);
      warned = '';
      if (now !== last) {
        last = now;
        onChange(nodes);
      }
    } catch (error) {
      const why = errorText(error);
      if (why !== warned) onWarning(`fleet: keeping the last list of nodes: ${why}`);
      warned = why;
    } finally {
      reading = false;
    }
  }, url.pollMs).unref();
  return () => clearInterval(timer);
}

/** One node from `host:port` and `key=value` words. Throws USAGE. */
export function parseNodeLine(line: string): NodeAddress {
  const [where, ...words] = line.trim().split(/\s+/);
  const match = /^(?:\[([0-9a-fA-F:]+)\]|([A-Za-z0-9._-]+))(?::(\d{1,5}))?$/.exec(where ?? '');
  if (!match) throw usage(line, 'want HOST:PORT');
  const host = match[1] ?? match[2]!;
  const port = Number(match[3] ?? DEFAULT_PORT);
  if (port < 1 || port > 65535) throw usage(line, `not a valid port: ${port}`);
  let name = where!.includes(':') ? where! : `${host}:${port}`;
  let weight = 1;
  let zone: string | undefined;
  for (const word of words) {
    const [key, value] = [word.slice(0, word.indexOf('=')), word.slice(word.indexOf('=') + 1)];
    if (!word.includes('=') || !/^[\x21-\x7e]{1,128}$/.test(value))
      throw usage(line, `unknown word: ${word}`);
    if (key === 'name') name = value;
    else if (key === 'zone') zone = value;
    else if (key === 'weight') weight = Number(value);
    else throw usage(line, `unknown word: ${word}`);
  }
  if (!(weight > 0 && weight <= 1e6)) throw usage(line, 'a weight must be above 0 and at most 1000000');
  return { name, host, port, weight, ...(zone === undefined ? {} : { zone }) };
}

async function readNodeFile(path: string): Promise<NodeAddress[]> {
  try {
    const { size } = await stat(path);
    if (size > FILE_BYTES_MAX) throw usage(path, `larger than ${FILE_BYTES_MAX} bytes`);
    const text = await readFile(path, 'utf8');
    const lines = text.split('\n').map((line) => line.replace(/#.*/, '').trim());
    return checkNodes(lines.filter((line) => line !== '').map(parseNodeLine));
  } catch (error) {
    if (error instanceof LazydiskError) throw error;
    throw new LazydiskError('UNAVAILABLE', `fleet file ${path}: ${errorText(error)}`, { cause: error });
  }
}

async function readSrv(name: string): Promise<NodeAddress[]> {
  try {
    const records = await resolveSrv(name);
    const nodes = records.map(({ name: host, port, weight }) => ({
      name: `${host}:${port}`,
      host,
      port,
      weight: Math.max(1, weight),
    }));
    return checkNodes(nodes.sort((a, b) => (a.name < b.name ? -1 : 1)));
  } catch (error) {
    if (error instanceof LazydiskError) throw error;
    throw new LazydiskError('UNAVAILABLE', `SRV records of ${name}: ${errorText(error)}`, { cause: error });
  }
}

function checkNodes(nodes: NodeAddress[]): NodeAddress[] {
  if (nodes.length === 0) throw new LazydiskError('USAGE', 'a fleet needs at least one node');
  if (nodes.length > NODES_MAX) throw new LazydiskError('USAGE', `a fleet has at most ${NODES_MAX} nodes`);
  const names = new Set(nodes.map((node) => node.name));
  if (names.size !== nodes.length)
    throw new LazydiskError('USAGE', 'two nodes of the fleet have the same name');
  return nodes;
}

function usage(what: string, why: string): LazydiskError {
  return new LazydiskError('USAGE', `fleet ${what}: ${why}`);
}
