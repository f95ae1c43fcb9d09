/** Platforms as the OCI image index names them: `os/arch[/variant]`, in Go's names for architectures. */
import { LazydiskError } from '../../errors.ts';

export interface Platform {
  readonly os: string;
  readonly architecture: string;
  readonly variant?: string | undefined;
}

const GO_ARCHITECTURES: Partial<Record<NodeJS.Architecture, string>> = {
  x64: 'amd64',
  ia32: '386',
  ppc64: 'ppc64le',
  loong64: 'loong64',
};

/** Parses a platform; the default is this machine's. Throws USAGE. */
export function parsePlatform(text?: string): Platform {
  if (text === undefined) {
    return { os: 'linux', architecture: GO_ARCHITECTURES[process.arch] ?? process.arch };
  }
  const [, os, architecture, variant] = /^([a-z0-9]+)\/([a-z0-9_]+)(?:\/([a-z0-9.]+))?$/.exec(text) ?? [];
  if (!os || !architecture) {
    throw new LazydiskError(
      'USAGE',
      `platform ${JSON.stringify(text)}: want os/arch[/variant], such as linux/amd64`,
    );
  }
  return { os, architecture, variant };
}

export function showPlatform({ os, architecture, variant }: Platform): string {
  return `${os}/${architecture}${variant ? `/${variant}` : ''}`;
}

/** A platform's variant, with the default of its architecture. */
function variantOf({ architecture, variant }: Platform): string {
  if (variant) return architecture === 'amd64' && variant === 'v1' ? '' : variant;
  return architecture === 'arm64' ? 'v8' : architecture === 'arm' ? 'v7' : '';
}

/** Whether `offered` matches `wanted`; a variant counts only if `wanted` has one. */
export function matchesPlatform(offered: Platform, wanted: Platform): boolean {
  return (
    offered.os === wanted.os &&
    offered.architecture === wanted.architecture &&
    (wanted.variant === undefined || variantOf(offered) === variantOf(wanted))
  );
}

/**
 * Returns the best of several offers: the wanted variant, or the architecture's default one, otherwise the first match.
 */
export function choosePlatform<T>(
  offers: readonly T[],
  platformOf: (offer: T) => Platform | undefined,
  wanted: Platform,
): T | undefined {
  const matching = offers.filter((offer) => {
    const platform = platformOf(offer);
    return platform !== undefined && matchesPlatform(platform, wanted);
  });
  const plain = variantOf(wanted);
  return matching.find((offer) => variantOf(platformOf(offer)!) === plain) ?? matching[0];
}
