/** The URIs under which exports are reached. */
import type { Address } from './setting-kinds.ts';

/** The form is defined in nbd's doc/uri.md. */
export function nbdUnixUri(path: string, name: string): string {
  return `nbd+unix:///${encodeURIComponent(name)}?socket=${encodeURI(path).replace(/[?#&+]/g, encodeURIComponent)}`;
}

export function nbdTcpUri(address: Address, name: string): string {
  return `nbd://${hostPort(address)}/${encodeURIComponent(name)}`;
}

export function hostPort({ host, port }: Address): string {
  return `${host.includes(':') ? `[${host}]` : host}:${port}`;
}
