/** A token server for a test's docker-registry: it signs tokens that the registry verifies (JWT, ES256). */
import { createPrivateKey, type KeyObject, sign, X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import http, { type IncomingMessage } from 'node:http';
import type { AddressInfo } from 'node:net';
import { selfSigned } from './certificates.ts';

const SERVICE = 'registry of the tests';
const ISSUER = 'token server of the tests';

export interface Asked {
  readonly method: string;
  readonly parameters: URLSearchParams;
  readonly authorization: string | undefined;
}

export class TokenServer {
  readonly asked: Asked[] = [];
  /** The response to a request instead of a token; undefined for a token. */
  refusal: (asked: Asked) => { status: number; body: string } | undefined = () => undefined;
  /** How long a token is valid. */
  validSeconds = 300;
  readonly #server: http.Server;
  readonly #certificate: string;
  readonly #key: KeyObject;
  readonly #chain: string;

  private constructor(certificate: string, chain: string, key: KeyObject) {
    this.#certificate = certificate;
    this.#chain = chain;
    this.#key = key;
    this.#server = http.createServer(async (request, response) => {
      const asked = await parse(request);
      this.asked.push(asked);
      const refusal = this.refusal(asked);
      response.writeHead(refusal?.status ?? 200, { 'content-type': 'application/json' });
      response.end(
        refusal?.body ?? JSON.stringify({ token: this.#token(asked), expires_in: this.validSeconds }),
      );
    });
  }

  /** Keeps its key in `dir`. */
  static async start(dir: string): Promise<TokenServer> {
    const { certificate, key } = await selfSigned(dir, 'token', 'tokens');
    const der = new X509Certificate(await readFile(certificate)).raw.toString('base64');
    const server = new TokenServer(certificate, der, createPrivateKey(await readFile(key)));
    server.#server.listen(0, '127.0.0.1');
    await once(server.#server, 'listening');
    return server;
  }

  /** The `auth` section of a registry's configuration. */
  get auth(): { readonly token: Readonly<Record<string, string>> } {
    const { port } = this.#server.address() as AddressInfo;
    const realm = `http://127.0.0.1:${port}/token`;
    return { token: { realm, service: SERVICE, issuer: ISSUER, rootcertbundle: this.#certificate } };
  }

  async close(): Promise<void> {
    this.#server.closeAllConnections();
    this.#server.close();
    await once(this.#server, 'close');
  }

  /** Issues a token for everything that is requested. */
  #token({ parameters }: Asked): string {
    const access = parameters.getAll('scope').map((scope) => {
      const [type, name, actions = ''] = scope.split(':');
      return { type, name, actions: actions.split(',') };
    });
    const now = Math.floor(Date.now() / 1000);
    const claims = {
      iss: ISSUER,
      sub: 'alice',
      aud: SERVICE,
      exp: now + this.validSeconds,
      nbf: now - 10,
      iat: now,
    };
    const part = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url');
    const signed = `${part({ typ: 'JWT', alg: 'ES256', x5c: [this.#chain] })}.${part({ ...claims, jti: `${now}`, access })}`;
    const signature = sign('sha256', Buffer.from(signed), { key: this.#key, dsaEncoding: 'ieee-p1363' });
    return `${signed}.${signature.toString('base64url')}`;
  }
}

async function parse(request: IncomingMessage): Promise<Asked> {
  const url = new URL(request.url ?? '/', 'http://localhost');
  const body = Buffer.concat((await Array.fromAsync(request)) as Buffer[]).toString();
  return {
    method: request.method ?? '',
    parameters: request.method === 'POST' ? new URLSearchParams(body) : url.searchParams,
    authorization: request.headers.authorization,
  };
}
