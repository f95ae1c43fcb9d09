/**
 * Which drive is behind which inode. Read-only drives of the same image are one inode with several names (hard links,
 * as `stat` shows them), so that the kernel keeps one copy of their pages for any number of guests. An inode lives as
 * long as it has a name or the kernel remembers it: an image that is detached and attached again meanwhile gets the
 * same inode, and its pages are still there.
 */
import type { BlockDevice } from '../../drive/block-device.ts';
import { type DirectoryEntry, ROOT_NODE_ID } from './protocol.ts';

/** One file content, under any number of names. */
export interface Inode {
  readonly nodeId: number;
  readonly key: string;
  readonly sizeBytes: number;
  /** As all its drives are. */
  readonly readOnly: boolean;
  /** The drives that serve it, all with the same bytes. */
  readonly devices: Set<BlockDevice>;
  /** The newest of them, which is read from and counts the reads; undefined after the last was removed. */
  device: BlockDevice | undefined;
  /** References that the kernel holds: LOOKUP replies minus FORGETs. */
  lookups: number;
}

interface Name {
  readonly inode: Inode;
  readonly cookie: number;
}

export class InodeTable {
  readonly #byKey = new Map<string, Inode>();
  readonly #byNodeId = new Map<number, Inode>();
  /** In the order of their cookies. */
  readonly #names = new Map<string, Name>();
  // Neither is ever reused, so an old reference never means a new inode.
  #nextNodeId = ROOT_NODE_ID + 1;
  #nextCookie = 3;

  add(device: BlockDevice): void {
    const key = keyOf(device, this.#nextNodeId);
    let inode = this.#byKey.get(key);
    if (!inode) {
      const nodeId = this.#nextNodeId++;
      const { sizeBytes, readOnly } = device;
      inode = { nodeId, key, sizeBytes, readOnly, devices: new Set(), device, lookups: 0 };
      this.#byKey.set(key, inode);
      this.#byNodeId.set(nodeId, inode);
    }
    inode.devices.add(device);
    // An operator who attaches a drive expects to see reads counted on that drive.
    inode.device = device;
    this.#names.set(device.name, { inode, cookie: this.#nextCookie++ });
  }

  remove(device: BlockDevice): void {
    const inode = this.#names.get(device.name)?.inode;
    if (!inode?.devices.delete(device)) return;
    this.#names.delete(device.name);
    if (inode.device === device) inode.device = [...inode.devices].at(-1);
    this.#dropUnused(inode);
  }

  byNodeId(nodeId: number): Inode | undefined {
    return this.#byNodeId.get(nodeId);
  }

  byName(name: string): Inode | undefined {
    return this.#names.get(name)?.inode;
  }

  /** The kernel drops `count` of its references. */
  forget(nodeId: number, count: number): void {
    const inode = this.#byNodeId.get(nodeId);
    if (!inode) return;
    inode.lookups = Math.max(0, inode.lookups - count);
    this.#dropUnused(inode);
  }

  get namesCount(): number {
    return this.#names.size;
  }

  /** Bytes of all contents, each counted once. */
  sizeBytes(): number {
    let sum = 0;
    for (const inode of this.#byNodeId.values()) sum += inode.devices.size > 0 ? inode.sizeBytes : 0;
    return sum;
  }

  /** The directory entries after `cookie` (0: from the start). */
  *entries(cookie: number): Generator<DirectoryEntry> {
    if (cookie < 1) yield { name: '.', nodeId: ROOT_NODE_ID, cookie: 1, directory: true };
    if (cookie < 2) yield { name: '..', nodeId: ROOT_NODE_ID, cookie: 2, directory: true };
    for (const [name, entry] of this.#names) {
      if (entry.cookie <= cookie) continue;
      yield { name, nodeId: entry.inode.nodeId, cookie: entry.cookie, directory: false };
    }
  }

  #dropUnused(inode: Inode): void {
    if (inode.devices.size > 0 || inode.lookups > 0) return;
    this.#byKey.delete(inode.key);
    this.#byNodeId.delete(inode.nodeId);
  }
}

/** Equal keys mean equal bytes forever. A writable drive shares with no other, not even its successor. */
function keyOf(device: BlockDevice, nextNodeId: number): string {
  return device.readOnly
    ? `image ${device.imageDigest} ${device.sizeBytes}`
    : `drive ${device.name} ${nextNodeId}`;
}
