/**
 * A queue in which owners take turns, so an owner with a thousand items does not delay one with a single item. It
 * shares common resources out among drives. An item may be in the queues of several owners.
 */
export class Turns<Owner, Item> {
  /** In the order of their turns; an owner without items is not here. */
  readonly #owners = new Map<Owner, Set<Item>>();

  get isEmpty(): boolean {
    return this.#owners.size === 0;
  }

  push(owner: Owner, item: Item): void {
    const items = this.#owners.get(owner);
    if (items) items.add(item);
    else this.#owners.set(owner, new Set([item]));
  }

  /**
   * Takes the first item of the first owner for which `mayHave` holds, and sends that owner to the end. Returns
   * undefined if there is none, or if `mayGo` refuses that item, which no other may overtake.
   */
  take(
    mayHave: (owner: Owner, item: Item) => boolean = () => true,
    mayGo: (item: Item) => boolean = () => true,
  ): Item | undefined {
    for (const [owner, items] of this.#owners) {
      const [item] = items as Set<Item>;
      if (item === undefined || !mayHave(owner, item)) continue;
      if (!mayGo(item)) return undefined;
      this.#owners.delete(owner);
      items.delete(item);
      if (items.size > 0) this.#owners.set(owner, items);
      return item;
    }
    return undefined;
  }

  /** The newest item of the owner with the most items; it stays in the queue. */
  lastOfLongest(): Item | undefined {
    let longest: Set<Item> | undefined;
    for (const items of this.#owners.values()) if (!longest || items.size > longest.size) longest = items;
    return longest && [...longest].at(-1);
  }

  /** Removes `item` from the queue of `owner`; does nothing if it is not there. */
  remove(owner: Owner, item: Item): void {
    const items = this.#owners.get(owner);
    if (items?.delete(item) && items.size === 0) this.#owners.delete(owner);
  }
}
