/** Where exports are found, as URIs. */
import type { Address } from './setting-kinds.ts';

/** As nbd's doc/uri.md has it. */
export function nbdUnixUri(path: string, name: string): string {
  return `nbd+unix:///${encodeURIComponent(name)}?socket=${encodeURI(path).replace(/[?#&+]/g, encodeURIComponent)}`;
}

export function nbdTcpUri(address: Address, name: string): string {
  return `nbd://${hostPort(address)}/${encodeURIComponent(name)}`;
}

export function hostPort({ host, port }: Address): string {
  return `${host.includes(':') ? `[${host}]` : host}:${port}`;
}
