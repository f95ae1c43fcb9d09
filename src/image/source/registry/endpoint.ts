/**
 * Where requests for a repository go: to its registry, or to a mirror that has copies of the registry's repositories.
 */
import { LazydiskError } from '../../../errors.ts';
import { DOCKER_HUB, type ImageReference, isHost, isRepository } from './reference.ts';

export interface Endpoint {
  /** `HOST[:PORT]` as people and credential files name it. */
  readonly registry: string;
  readonly repository: string;
  /** Undefined: HTTPS, or HTTP if the server does not speak TLS; only on loopback. */
  readonly scheme: 'https' | 'http' | undefined;
  /** `HOST[:PORT]` that requests go to. */
  readonly host: string;
}

/** Docker Hub's registry has another name than its images. */
const DOCKER_HUB_HOST = 'registry-1.docker.io';

export interface EndpointOptions {
  /** `REGISTRY=[http://|https://]HOST[:PORT][/PATH]`: tried before REGISTRY itself, in this order. */
  readonly mirrors?: readonly string[];
  /** Use plain HTTP, also for registries that are not on loopback. */
  readonly isPlainHttp?: boolean;
}

/** Returns the mirrors first, the registry itself last. Throws USAGE for a malformed mirror. */
export function endpointsOf(reference: ImageReference, options: EndpointOptions = {}): Endpoint[] {
  const { mirrors = [], isPlainHttp = false } = options;
  const { registry, repository } = reference;
  const host = registry === DOCKER_HUB ? DOCKER_HUB_HOST : registry;
  const asked = mirrors.map(parseMirror).filter((mirror) => mirror.of === registry);
  return [
    ...asked.map(
      (mirror): Endpoint => ({
        registry: mirror.host,
        repository: mirror.path === '' ? repository : `${mirror.path}/${repository}`,
        scheme: mirror.scheme ?? schemeOf(mirror.host, isPlainHttp),
        host: mirror.host,
      }),
    ),
    { registry, repository, scheme: schemeOf(host, isPlainHttp), host },
  ];
}

interface Mirror {
  /** The registry that it mirrors. */
  readonly of: string;
  readonly scheme: 'https' | 'http' | undefined;
  readonly host: string;
  /** Prefix of the repositories' names; may be empty. */
  readonly path: string;
}

function parseMirror(text: string): Mirror {
  const [, of = '', scheme, host = '', path = ''] =
    /^([^=/]+)=(?:(https?):\/\/)?([^/]+)(?:\/(.*?)\/?)?$/.exec(text) ?? [];
  if (!isHost(of) || !isHost(host) || (path !== '' && !isRepository(path))) {
    throw new LazydiskError(
      'USAGE',
      `mirror ${JSON.stringify(text)}: want REGISTRY=HOST[:PORT][/PATH], as in docker.io=mirror.example/hub`,
    );
  }
  return { of, scheme: scheme as Mirror['scheme'], host: host.toLowerCase(), path };
}

function schemeOf(host: string, isPlainHttp: boolean): Endpoint['scheme'] {
  if (isPlainHttp) return 'http';
  return isLoopback(host) ? undefined : 'https';
}

/** Whether `HOST[:PORT]` names the loopback interface. */
function isLoopback(host: string): boolean {
  return /^(?:localhost|127(?:\.\d{1,3}){3}|\[::1\])(?::\d+)?$/.test(host);
}
