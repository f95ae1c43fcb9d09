/**
 * Where Docker and the containers tools (podman, skopeo, buildah) keep logins to registries: JSON files, and credential
 * helpers that such files name. Sources: docker's config.json, containers-auth.json(5).
 */
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { errorText, LazydiskError } from '../../../errors.ts';
import { nullish, openObject, record, type TypeOf, text } from '../../../shape.ts';
import { askCredentialHelper, type Credential } from './credential-helper.ts';
import { DOCKER_HUB, type ImageReference } from './reference.ts';

export interface FoundCredential {
  readonly credential: Credential;
  /** The file or program that it comes from, for messages. */
  readonly from: string;
}

const FILE_BYTES_MAX = 4 * 1024 * 1024;

const field = nullish(text());
const authEntry = openObject({
  auth: field,
  username: field,
  password: field,
  identitytoken: field,
  registrytoken: field,
});
type AuthEntry = TypeOf<typeof authEntry>;
const authFile = openObject({
  auths: nullish(record(authEntry)),
  credHelpers: nullish(record(text())),
  credsStore: field,
});
type AuthFile = TypeOf<typeof authFile>;

/** The environment that says where the files are. */
export type AuthEnvironment = Readonly<Record<string, string | undefined>>;

/**
 * Returns the login for a repository: in each file, the entry for the longest leading part of its name. Undefined if
 * there is none. Throws UNAVAILABLE if a helper fails, CORRUPT for a malformed file, KEY for one that cannot be read.
 */
export async function findCredential(
  of: Pick<ImageReference, 'registry' | 'repository'>,
  environment: AuthEnvironment,
  signal?: AbortSignal,
): Promise<FoundCredential | undefined> {
  for (const path of authFilesOf(environment)) {
    const file = await readAuthFile(path);
    if (!file) continue;
    const found = await credentialIn(file, path, of, signal);
    if (found) return found;
  }
  return undefined;
}

/** The files that are read, in order of precedence. */
function authFilesOf(environment: AuthEnvironment): string[] {
  const { REGISTRY_AUTH_FILE, XDG_RUNTIME_DIR, XDG_CONFIG_HOME, DOCKER_CONFIG, HOME } = environment;
  if (REGISTRY_AUTH_FILE) return [REGISTRY_AUTH_FILE];
  const paths = [
    XDG_RUNTIME_DIR
      ? join(XDG_RUNTIME_DIR, 'containers/auth.json')
      : `/run/containers/${process.getuid?.() ?? 0}/auth.json`,
  ];
  const config = XDG_CONFIG_HOME || (HOME && join(HOME, '.config'));
  if (config) paths.push(join(config, 'containers/auth.json'));
  const docker = DOCKER_CONFIG || (HOME && join(HOME, '.docker'));
  if (docker) paths.push(join(docker, 'config.json'));
  return paths;
}

async function readAuthFile(path: string): Promise<AuthFile | undefined> {
  let bytes: Buffer;
  try {
    await using file = await open(path, 'r');
    const buffer = Buffer.alloc(Math.min((await file.stat()).size, FILE_BYTES_MAX) + 1);
    bytes = buffer.subarray(0, (await file.read(buffer, 0, buffer.length, 0)).bytesRead);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ENOTDIR') return undefined;
    throw new LazydiskError('KEY', `logins to registries: ${errorText(error)}`, { cause: error });
  }
  if (bytes.length > FILE_BYTES_MAX) throw malformed(path, 'it is too large');
  let json: unknown;
  try {
    json = JSON.parse(bytes.toString('utf8'));
  } catch {
    // The parser's own message quotes the file.
    throw malformed(path, 'it is not valid JSON');
  }
  const problem = authFile.problem(json, '');
  if (problem !== undefined) throw malformed(path, problem);
  return json as AuthFile;
}

function malformed(path: string, why: string): LazydiskError {
  return new LazydiskError('CORRUPT', `logins to registries in ${path}: ${why}`);
}

async function credentialIn(
  file: AuthFile,
  path: string,
  { registry, repository }: Pick<ImageReference, 'registry' | 'repository'>,
  signal: AbortSignal | undefined,
): Promise<FoundCredential | undefined> {
  const helper = find(file.credHelpers, registry);
  const entry = longest(file.auths, registry, repository);
  const credential = helper === undefined && entry ? credentialOf(entry, path) : undefined;
  if (credential) return { credential, from: path };
  const program = helper ?? file.credsStore;
  if (!program) return undefined;
  const answer = await askCredentialHelper(program, helperKeyOf(registry), signal);
  return answer && { credential: answer, from: `docker-credential-${program}` };
}

/** Throws CORRUPT. */
function credentialOf(entry: AuthEntry, path: string): Credential | undefined {
  const { auth, username, password, identitytoken, registrytoken } = entry;
  if (registrytoken) return { kind: 'bearer', token: registrytoken };
  if (identitytoken) return { kind: 'identity', token: identitytoken };
  if (username && password) return { kind: 'password', user: username, password };
  if (!auth) return undefined;
  const decoded = Buffer.from(auth, 'base64').toString('utf8').replace(/\0+$/, '');
  const colon = decoded.indexOf(':');
  if (colon < 1) throw malformed(path, 'an "auth" is not the base64 of USER:PASSWORD');
  return { kind: 'password', user: decoded.slice(0, colon), password: decoded.slice(colon + 1) };
}

/** The entry for `registry/a/b`, otherwise for `registry/a`, otherwise for `registry`. */
function longest<T>(
  entries: Readonly<Record<string, T>> | null | undefined,
  registry: string,
  repository: string,
): T | undefined {
  for (let name = `${registry}/${repository}`; ; name = name.slice(0, name.lastIndexOf('/'))) {
    const entry = find(entries, name);
    if (entry !== undefined || !name.includes('/')) return entry;
  }
}

function find<T>(entries: Readonly<Record<string, T>> | null | undefined, name: string): T | undefined {
  return Object.entries(entries ?? {}).find(([key]) => plainKey(key) === name)?.[1];
}

/** Docker writes some hosts as URLs of its API. */
function plainKey(key: string): string {
  const plain = key.replace(/^https?:\/\//, '').replace(/\/(?:v[12]\/?)?$/, '');
  return plain.replace(/^(?:index|registry-1)\.docker\.io(?=\/|$)/, DOCKER_HUB);
}

function helperKeyOf(registry: string): string {
  return registry === DOCKER_HUB ? 'https://index.docker.io/v1/' : registry;
}
