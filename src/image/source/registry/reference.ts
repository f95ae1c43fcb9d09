/**
 * Names of images in registries, in Docker's grammar: `HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]`, where the host may be
 * omitted for Docker Hub. Source: distribution/reference, "Grammar".
 */
import { LazydiskError } from '../../../errors.ts';
import { DIGEST } from '../layer-blob.ts';

export const DOCKER_HUB = 'docker.io';

export interface ImageReference {
  /** `HOST[:PORT]`; `docker.io` for Docker Hub. */
  readonly registry: string;
  readonly repository: string;
  /** The digest if there is one, otherwise the tag, by default `latest`. */
  readonly version: string;
}

const FORMS =
  '[docker://][HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST], oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:NAME:TAG]';

/**
 * Longest reference that is parsed; the grammar allows 255 for host and repository, 128 for a tag, 135 for a digest.
 */
const REFERENCE_LENGTH_MAX = 600;
const NAME_LENGTH_MAX = 255;

const LABEL = '[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?';
const HOST = new RegExp(`^(?:${LABEL}(?:\\.${LABEL})*|\\[[0-9A-Fa-f:.]{2,45}\\])(?::([0-9]{1,5}))?$`);
const REPOSITORY = /^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:\/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$/;
const TAG = /^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$/;

/** Parses a reference, with or without the prefix `docker://`. Throws USAGE. */
export function parseReference(text: string): ImageReference {
  const name = text.replace(/^docker:\/\//, '');
  const wrong = (what: string) =>
    new LazydiskError(
      'USAGE',
      `image source ${JSON.stringify(text.slice(0, REFERENCE_LENGTH_MAX))}: ${what}`,
    );
  if (name.length > REFERENCE_LENGTH_MAX) throw wrong('it is too long');
  const [, path = '', tag, digest] = /^([^@]*?)(?::([^:/@]*))?(?:@(.*))?$/s.exec(name) ?? [];
  const { registry, repository } = splitHost(path);
  if (!isHost(registry)) throw wrong(`${JSON.stringify(registry)} is not a host`);
  if (!isRepository(repository) || registry.length + repository.length > NAME_LENGTH_MAX) {
    throw wrong(`want ${FORMS}`);
  }
  if (tag !== undefined && !TAG.test(tag)) throw wrong('the tag is not valid');
  if (digest !== undefined && !DIGEST.test(digest))
    throw wrong('the digest is not a sha256 or sha512 digest');
  return { registry, repository, version: digest ?? tag ?? 'latest' };
}

export function isHost(text: string): boolean {
  const match = HOST.exec(text);
  return match !== null && text.length <= NAME_LENGTH_MAX && Number(match[1] ?? 1) <= 65_535;
}

export function isRepository(text: string): boolean {
  return text.length <= NAME_LENGTH_MAX && REPOSITORY.test(text);
}

/** The first part is a host if it could not be part of a repository's name on Docker Hub, or is `localhost`. */
function splitHost(path: string): { registry: string; repository: string } {
  const slash = path.indexOf('/');
  const first = path.slice(0, Math.max(slash, 0));
  const isNamed = slash !== -1 && (/[.:A-Z]/.test(first) || first === 'localhost');
  const registry = isNamed ? first.toLowerCase() : DOCKER_HUB;
  const repository = isNamed ? path.slice(slash + 1) : path;
  if (registry !== DOCKER_HUB && registry !== 'index.docker.io') return { registry, repository };
  // Docker's official images are named without their directory.
  return {
    registry: DOCKER_HUB,
    repository: repository.includes('/') ? repository : `library/${repository}`,
  };
}
