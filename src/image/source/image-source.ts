/** The interface by which a build reads an image from any kind of source. */
import type { RunConfig } from '../../format/manifest-metadata.ts';

/** How to run the image, and on what; `''` for a field that the image does not state. */
export interface ImageConfig extends RunConfig {
  readonly architecture: string;
  readonly os: string;
}

export interface LayerBlob {
  /** `sha256:…` of the blob as it is in the source; in an old docker archive, of the tar in it. */
  readonly digest: string;
  readonly mediaType: string;
  /** Bytes of the blob as it is in the source. */
  readonly sizeBytes: number;
  /** Digest of the uncompressed tar, from the image's config. */
  readonly diffId: string;
  /**
   * The uncompressed tar. Size and digest of the blob and its diffId are checked as it streams; if one is wrong, the
   * stream fails at its end with a LazydiskError CORRUPT that names the blob. `onInput` is called for each piece of the
   * blob that was read.
   */
  open(signal?: AbortSignal, onInput?: (lengthBytes: number) => void): AsyncIterable<Buffer>;
}

export interface ImageSource {
  /** As the user wrote it. */
  readonly description: string;
  /** Digest of the image's manifest; of its config in an old docker archive, which has no manifest. */
  readonly digest: string;
  readonly config: ImageConfig;
  /** Base layer first. */
  readonly layers: readonly LayerBlob[];
  close(): Promise<void>;
}
