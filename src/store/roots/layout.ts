/**
 * Defines the keys of a store (FORMAT.md, "A store"); only this file makes and parses them. Everything of an image is
 * in an area: a root, which is a generation of the store, or the trash of one sweep. The state of an area is which
 * markers it has and when they were written, so no state is ever overwritten.
 */
import { LazydiskError } from '../../errors.ts';
import type { ChunkId } from '../../format/chunk-id.ts';
import type { ImageDigest } from '../../format/image-digest.ts';
import { isDigest } from '../../format/image-digest.ts';
import { KEY_ID } from '../../format/keys.ts';
import { nameOfReferenceFile, referenceFile } from '../reference-name.ts';

/** `roots/NUMBER` or `trash/NUMBER-SWEEP`, where NUMBER is that of the swept root. */
export type AreaPath = `roots/${number}` | `trash/${number}-${string}`;

export const MARKER_KEY = 'lazydisk-store.json';
export const STATE_PREFIX = 'state/';
/** Prefix of 256 objects, named by two more hex digits, that probe whether a store has compare-and-set. */
export const PROBE_PREFIX = 'state/probe-';
/** The list of areas, for readers that cannot list. */
export const INDEX_KEY = 'state/index.json';
export const HISTORY_PREFIX = 'history/';
export const JOURNAL_PREFIX = 'journal/';
export const KEYS_PREFIX = 'keys/';
/** Everything that daemons and other readers write; their credentials need no other write access. */
export const HOSTS_PREFIX = 'hosts/';
export const LEASES_PREFIX = 'hosts/leases/';
const READS_PREFIX = 'hosts/reads/';

/** The state that a marker records for its area. */
export type AreaMarker = 'opened' | 'retired' | 'closed' | 'deleting';

const CHUNK_ID = /^[0-9a-f]{64}$/;
const SHARD = /^[0-9a-f]{2}$/;
const AREA = /^(?:roots\/[1-9]\d{0,8}|trash\/[1-9]\d{0,8}-[0-9A-Za-z]{1,40})$/;
const MARKER = /^(?:opened|retired|closed|deleting)$/;
const HOST = /^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$/;

export function isAreaPath(text: string): text is AreaPath {
  return AREA.test(text);
}

export function rootPath(number: number): AreaPath {
  return `roots/${number}`;
}

/** The number of the root that an area is, or that it is the trash of. */
export function rootNumberOf(area: AreaPath): number {
  return Number.parseInt(area.slice(area.indexOf('/') + 1), 10);
}

export function chunkKey(area: AreaPath, id: ChunkId): string {
  if (!CHUNK_ID.test(id)) throw new LazydiskError('INTERNAL', `chunk id ${JSON.stringify(id)}`);
  return `${area}/chunks/${id.slice(0, 2)}/${id.slice(2, 4)}/${id}`;
}

/** The folder of all chunks of `area`, or of those whose id starts with `shard`, two hex digits. */
export function chunksPrefix(area: AreaPath, shard?: string): string {
  return shard === undefined ? `${area}/chunks/` : `${area}/chunks/${shard}/`;
}

/** The 256 folders of chunks, named by the first two digits of their ids. */
export const SHARDS: readonly string[] = Array.from({ length: 256 }, (_, n) =>
  n.toString(16).padStart(2, '0'),
);

export function manifestKey(area: AreaPath, digest: ImageDigest, keyId: string): string {
  if (!KEY_ID.test(keyId))
    throw new LazydiskError('INTERNAL', `manifest of ${digest} for key ${JSON.stringify(keyId)}`);
  return `${manifestsPrefix(area, digest)}${keyId}`;
}

export function manifestsPrefix(area: AreaPath, digest?: ImageDigest): string {
  if (digest === undefined) return `${area}/manifests/sha256/`;
  return `${area}/manifests/sha256/${hexOf(digest)}/`;
}

function hexOf(digest: ImageDigest): string {
  if (!isDigest(digest)) throw new LazydiskError('INTERNAL', `image digest ${JSON.stringify(digest)}`);
  return digest.slice('sha256:'.length);
}

/** `references`: written in this root; `inherited`: copied from the previous root. The former wins. */
export type ReferenceKind = 'references' | 'inherited';

export function referenceKey(area: AreaPath, kind: ReferenceKind, fullName: string): string {
  return `${area}/${kind}/${referenceFile(fullName)}`;
}

export function referencesPrefix(area: AreaPath, kind: ReferenceKind): string {
  return `${area}/${kind}/`;
}

export function stateKey(area: AreaPath, marker: AreaMarker): string {
  return `${STATE_PREFIX}${area}/${marker}`;
}

/** The object whose time is when `host` last had `image` attached. */
export function leaseKey(image: ImageDigest, host: string): string {
  return `${leasesPrefix(image)}${checkHost(host)}`;
}

/** The folder of all leases of `image`. */
export function leasesPrefix(image: ImageDigest): string {
  return `${LEASES_PREFIX}${hexOf(image)}/`;
}

/** The object whose time is when `host` last read from `area`, a trash or a retired root. */
export function readKey(area: AreaPath, host: string): string {
  return `${readsPrefix(area)}${checkHost(host)}`;
}

export function readsPrefix(area: AreaPath): string {
  return `${READS_PREFIX}${area}/`;
}

function checkHost(host: string): string {
  if (!HOST.test(host)) throw new LazydiskError('INTERNAL', `host ${JSON.stringify(host)}`);
  return host;
}

export function wrappedKeyKey(id: string): string {
  if (!KEY_ID.test(id)) throw new LazydiskError('INTERNAL', `key id ${JSON.stringify(id)}`);
  return `${KEYS_PREFIX}${id}.json`;
}

/** What one key is for. */
export type KeyMeaning =
  | { readonly kind: 'chunk'; readonly area: AreaPath; readonly id: ChunkId }
  | {
      readonly kind: 'manifest';
      readonly area: AreaPath;
      readonly digest: ImageDigest;
      readonly keyId: string;
    }
  | {
      readonly kind: 'reference';
      readonly area: AreaPath;
      readonly from: ReferenceKind;
      readonly name: string;
    }
  | { readonly kind: 'marker'; readonly area: AreaPath; readonly marker: AreaMarker }
  | { readonly kind: 'lease'; readonly image: ImageDigest; readonly host: string }
  | { readonly kind: 'read'; readonly area: AreaPath; readonly host: string }
  | { readonly kind: 'store' | 'index' | 'probe' | 'history' | 'journal' | 'key' };

/** What a key is for, or undefined for one that lazydisk does not write. */
export function meaningOf(key: string): KeyMeaning | undefined {
  if (key === MARKER_KEY) return { kind: 'store' };
  if (key === INDEX_KEY) return { kind: 'index' };
  if (key.startsWith(PROBE_PREFIX) && key.length === PROBE_PREFIX.length + 2) return { kind: 'probe' };
  const parts = key.split('/');
  const [top, name = '', third, ...rest] = parts;
  if (top === 'history') return parts.length === 3 && parseHistoryKey(key) ? { kind: 'history' } : undefined;
  if (top === 'journal')
    return parts.length === 2 && /^[0-9A-Za-z-]+\.json$/.test(name) ? { kind: 'journal' } : undefined;
  if (top === 'keys')
    return parts.length === 2 && /^[0-9a-f]{16}\.json$/.test(name) ? { kind: 'key' } : undefined;
  if (top === 'state') return markerMeaning(`${name}/${third}`, rest);
  if (top === 'hosts') return hostMeaning(name, parts.slice(2));
  const area = `${top}/${name}`;
  if (!isAreaPath(area)) return undefined;
  if (third === 'chunks') return chunkMeaning(area, rest);
  if (third === 'manifests') return manifestMeaning(area, rest);
  if (third === 'references' || third === 'inherited') {
    const found = rest.length === 1 ? nameOfReferenceFile(rest[0]!) : undefined;
    return found === undefined ? undefined : { kind: 'reference', area, from: third, name: found };
  }
  return undefined;
}

function markerMeaning(area: string, rest: readonly string[]): KeyMeaning | undefined {
  const [marker] = rest;
  if (!isAreaPath(area) || rest.length !== 1 || !MARKER.test(marker!)) return undefined;
  return { kind: 'marker', area, marker: marker as AreaMarker };
}

function hostMeaning(folder: string, rest: readonly string[]): KeyMeaning | undefined {
  const host = rest.at(-1) ?? '';
  if (!HOST.test(host)) return undefined;
  if (folder === 'leases') {
    const image = `sha256:${rest[0]}`;
    return rest.length === 2 && isDigest(image) ? { kind: 'lease', image, host } : undefined;
  }
  const area = `${rest[0]}/${rest[1]}`;
  if (folder !== 'reads' || rest.length !== 3 || !isAreaPath(area)) return undefined;
  return { kind: 'read', area, host };
}

function chunkMeaning(area: AreaPath, rest: readonly string[]): KeyMeaning | undefined {
  const [a, b, id] = rest as [string, string, string];
  if (rest.length !== 3 || !SHARD.test(a) || !SHARD.test(b) || !CHUNK_ID.test(id) || !id.startsWith(a + b))
    return undefined;
  return { kind: 'chunk', area, id: id as ChunkId };
}

function manifestMeaning(area: AreaPath, rest: readonly string[]): KeyMeaning | undefined {
  const [algorithm, hex, keyId] = rest;
  const digest = `${algorithm}:${hex}`;
  if (rest.length !== 3 || !isDigest(digest) || !KEY_ID.test(keyId!)) return undefined;
  return { kind: 'manifest', area, digest, keyId: keyId! };
}

/**
 * A record of what a name was set to: everything is in the key, so a listing suffices to read it.
 * `history/NAME%3ATAG/TIME-RANDOM-HEX`; TIME is in milliseconds since 1970 by the writer's clock, HEX is `none` for a
 * removed name.
 */
export function historyKey(
  fullName: string,
  timeMs: number,
  random: string,
  digest: ImageDigest | null,
): string {
  return `${historyPrefix(fullName)}${timeMs}-${random}-${digest === null ? 'none' : digest.slice('sha256:'.length)}`;
}

export function historyPrefix(fullName: string): string {
  return `${HISTORY_PREFIX}${encodeURIComponent(fullName)}/`;
}

const HISTORY = /^history\/([^/]+)\/(\d{1,15})-([0-9a-f]{8})-([0-9a-f]{64}|none)$/;

export interface HistoryRecord {
  readonly name: string;
  readonly timeMs: number;
  readonly digest: ImageDigest | null;
}

export function parseHistoryKey(key: string): HistoryRecord | undefined {
  const match = HISTORY.exec(key);
  const name = match && nameOfReferenceFile(`${match[1]}.json`);
  if (!name) return undefined;
  const digest = match[4] === 'none' ? null : (`sha256:${match[4]}` as ImageDigest);
  return { name, timeMs: Number(match[2]), digest };
}
