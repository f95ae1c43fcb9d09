/** The attached drives by name, which the exports list and look up. */
import { EventEmitter } from 'node:events';
import { LazydiskError } from '../errors.ts';
import type { BlockDevice } from './block-device.ts';

/** Emits 'added' and 'removed' with the device, after the map has changed. */
export class DriveRegistry<D extends BlockDevice = BlockDevice> extends EventEmitter<{
  added: [D];
  removed: [D];
}> {
  readonly #drives = new Map<string, D>();

  /** Throws EXISTS for a name that is taken. */
  add(drive: D): void {
    if (this.#drives.has(drive.name))
      throw new LazydiskError('EXISTS', `drive ${drive.name} is attached already`);
    this.#drives.set(drive.name, drive);
    this.emit('added', drive);
  }

  get(name: string): D | undefined {
    return this.#drives.get(name);
  }

  /** Throws NOT_FOUND. */
  remove(name: string): D {
    const drive = this.#drives.get(name);
    if (!drive) throw new LazydiskError('NOT_FOUND', `no drive ${name} is attached`);
    this.#drives.delete(name);
    this.emit('removed', drive);
    return drive;
  }

  get size(): number {
    return this.#drives.size;
  }

  list(): D[] {
    return [...this.#drives.values()];
  }
}
