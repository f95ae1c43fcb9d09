/** The parts of a store that keys and manifests need, in Maps, with its calls counted and faults on request. */
import { LazydiskError } from '../../src/errors.ts';
import type { ImageDigest } from '../../src/format/image-digest.ts';
import type { WrappedKeyStore } from '../../src/keys/wrapped-keys.ts';
import type { ManifestSource } from '../../src/store/open-manifest.ts';
import { referenceName } from '../../src/store/reference-name.ts';
import type { RewrapStore, RewrapWriter } from '../../src/store/rewrap.ts';
import type { ManifestPlacement, Reference } from '../../src/store/store.ts';

export class MemoryStore implements ManifestSource, RewrapStore, RewrapWriter, WrappedKeyStore {
  readonly url = 'memory:test';
  readonly keys = new Map<string, Buffer>();
  /** By `DIGEST/KEYID`. */
  readonly manifests = new Map<string, Buffer>();
  readonly references = new Map<string, Reference>();
  /** `METHOD ARGUMENTS` of all calls. */
  readonly calls: string[] = [];
  /** Called with each call before it is executed; may throw. */
  onCall: (call: string) => void = () => {};
  isListable = true;

  async getKey(id: string): Promise<Buffer | undefined> {
    await this.#called(`getKey ${id}`);
    return this.keys.get(id);
  }

  async listKeys(): Promise<string[]> {
    await this.#called('listKeys');
    return [...this.keys.keys()];
  }

  async putKey(id: string, bytes: Uint8Array): Promise<void> {
    await this.#called(`putKey ${id}`);
    this.keys.set(id, Buffer.from(bytes));
  }

  async getManifest(digest: ImageDigest, keyId: string): Promise<Buffer | undefined> {
    await this.#called(`getManifest ${digest} ${keyId}`);
    return this.manifests.get(`${digest}/${keyId}`);
  }

  async writer(): Promise<this> {
    return this;
  }

  async addManifest(digest: ImageDigest, keyId: string, manifest: Buffer): Promise<ManifestPlacement> {
    await this.#called(`addManifest ${digest} ${keyId}`);
    this.manifests.set(`${digest}/${keyId}`, Buffer.from(manifest));
    return 'written';
  }

  async replaceManifest(digest: ImageDigest, keyId: string, manifest: Uint8Array): Promise<void> {
    await this.#called(`replaceManifest ${digest} ${keyId}`);
    this.manifests.set(`${digest}/${keyId}`, Buffer.from(manifest));
  }

  async removeManifest(digest: ImageDigest, keyId: string): Promise<void> {
    await this.#called(`removeManifest ${digest} ${keyId}`);
    this.manifests.delete(`${digest}/${keyId}`);
  }

  async manifestKeys(digest: ImageDigest): Promise<string[]> {
    await this.#called(`manifestKeys ${digest}`);
    if (!this.isListable) throw new LazydiskError('UNSUPPORTED', 'a store that cannot be listed');
    const prefix = `${digest}/`;
    return [...this.manifests.keys()]
      .filter((path) => path.startsWith(prefix))
      .map((path) => path.slice(prefix.length));
  }

  async getReference(name: string): Promise<Reference | undefined> {
    await this.#called(`getReference ${name}`);
    return this.references.get(referenceName(name));
  }

  async listReferences(): Promise<Reference[]> {
    await this.#called('listReferences');
    return [...this.references.values()];
  }

  /** Records a name, without counting the call. */
  name(text: string, digest: ImageDigest): void {
    const name = referenceName(text);
    this.references.set(name, { name, digest, updated: '2026-01-31T12:00:00.000Z' });
  }

  /** Calls of `method` so far. */
  count(method: string): number {
    return this.calls.filter((call) => call.split(' ')[0] === method).length;
  }

  async #called(call: string): Promise<void> {
    await new Promise(setImmediate);
    this.calls.push(call);
    this.onCall(call);
  }
}
