/** The object that marks a store, with its layout version and its policy. */
import { LazydiskError } from '../../errors.ts';
import type { ObjectStore } from '../objects/object-store.ts';
import { MARKER_KEY } from './layout.ts';
import { checkPolicy, DEFAULT_POLICY, type StorePolicy } from './policy.ts';

const KIND = 'lazydisk store';
const VERSION = 4;
const MARKER_BYTES_MAX = 64 * 1024;

/** The policy of the store in `objects`, or undefined if there is no store. Throws CORRUPT, UNSUPPORTED. */
export async function readMarker(objects: ObjectStore): Promise<StorePolicy | undefined> {
  const found = await objects.get(MARKER_KEY, MARKER_BYTES_MAX);
  return found && parseMarker(objects.url, found.bytes);
}

/** Creates a store, or changes the policy of an existing one. Throws USAGE for an invalid policy. */
export async function writeMarker(objects: ObjectStore, policy: StorePolicy = DEFAULT_POLICY): Promise<void> {
  checkPolicy(policy);
  await objects.put(MARKER_KEY, Buffer.from(`${JSON.stringify({ kind: KIND, version: VERSION, policy })}\n`));
}

function parseMarker(url: string, bytes: Buffer): StorePolicy {
  const where = `${url}/${MARKER_KEY}`;
  let fields: { kind?: unknown; version?: unknown; policy?: unknown } | null;
  try {
    fields = JSON.parse(bytes.toString()) as typeof fields;
  } catch (cause) {
    throw new LazydiskError('CORRUPT', `${where} is not JSON`, { cause });
  }
  if (fields?.kind !== KIND) throw new LazydiskError('CORRUPT', `${where} is not a store's`);
  if (fields.version !== VERSION)
    throw new LazydiskError(
      'UNSUPPORTED',
      `the store in ${url} has layout version ${Number(fields.version)}, this program knows ${VERSION}`,
    );
  const { policy } = fields;
  if (!isPolicy(policy)) throw new LazydiskError('CORRUPT', `${where} has no proper policy`);
  try {
    checkPolicy(policy);
  } catch (cause) {
    throw new LazydiskError('CORRUPT', `${where}: ${(cause as Error).message}`, { cause });
  }
  return policy;
}

/**
 * Exactly these times. Checked by hand, because every command reads a marker, and a schema library takes long to load.
 */
function isPolicy(value: unknown): value is StorePolicy {
  if (typeof value !== 'object' || value === null) return false;
  const names = Object.keys(DEFAULT_POLICY);
  const times = Object.entries(value);
  return (
    times.length === names.length &&
    times.every(([name, ms]) => names.includes(name) && typeof ms === 'number')
  );
}
