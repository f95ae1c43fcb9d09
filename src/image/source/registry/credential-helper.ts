/**
 * Programs that keep logins to registries in a keychain or get them from a cloud: `docker-credential-NAME get`, with the
 * registry on standard input and JSON on standard output. Source: docker/docker-credential-helpers, "Development".
 */
import { spawn } from 'node:child_process';
import { errorText, LazydiskError } from '../../../errors.ts';
import { openObject, type TypeOf, text } from '../../../shape.ts';
import { refusal } from './answer-error.ts';

/** A secret: never part of a message. */
export type Credential =
  | { readonly kind: 'password'; readonly user: string; readonly password: string }
  /** Exchanged for tokens at a token server. */
  | { readonly kind: 'identity'; readonly token: string }
  /** Sent to the registry unchanged. */
  | { readonly kind: 'bearer'; readonly token: string };

/** Helpers may call a cloud, or ask a person. */
const TIMEOUT_MS = 60_000;
const OUTPUT_BYTES_MAX = 256 * 1024;
const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$/;
/** What helpers write to standard output for an unknown registry. */
const NOT_FOUND = 'credentials not found in native keychain';
/** In place of a user name, if the secret is not a password. */
const TOKEN_USER = '<token>';

const answer = openObject({ Username: text(), Secret: text(1) });

/**
 * Returns the login of the helper `name` for `registry`; undefined if it has none. Throws UNAVAILABLE for a helper that
 * is not installed, fails, or takes too long, and ABORTED; its output, which may contain secrets, is in no message.
 */
export async function askCredentialHelper(
  name: string,
  registry: string,
  signal?: AbortSignal,
  timeoutMs = TIMEOUT_MS,
): Promise<Credential | undefined> {
  if (!NAME.test(name)) {
    throw refusal(`credential helper ${JSON.stringify(name)}: not a valid name`);
  }
  const program = `docker-credential-${name}`;
  const { code, output } = await run(program, registry, timeoutMs, signal);
  const words = output.toString('utf8');
  if (code !== 0) {
    if (words.trim() === NOT_FOUND) return undefined;
    throw failure(program, `it failed for ${registry} (exit code ${code})`);
  }
  let json: unknown;
  try {
    json = JSON.parse(words);
  } catch {
    throw failure(program, 'its answer is not valid JSON');
  }
  if (answer.problem(json, '') !== undefined) throw failure(program, 'its answer has no Username or Secret');
  const { Username, Secret } = json as TypeOf<typeof answer>;
  return Username === TOKEN_USER
    ? { kind: 'identity', token: Secret }
    : { kind: 'password', user: Username, password: Secret };
}

function failure(program: string, why: string, cause?: unknown): LazydiskError {
  return refusal(`credential helper ${program}: ${why}`, cause);
}

function run(
  program: string,
  input: string,
  timeoutMs: number,
  signal: AbortSignal | undefined,
): Promise<{ code: number | null; output: Buffer }> {
  return new Promise((resolve, reject) => {
    // Its own process group, so that its children are killed with it.
    const child = spawn(program, ['get'], { stdio: ['pipe', 'pipe', 'ignore'], detached: true });
    const parts: Buffer[] = [];
    let sizeBytes = 0;
    const stop = (error: LazydiskError): void => {
      settle();
      if (child.pid !== undefined && child.exitCode === null && child.signalCode === null) {
        process.kill(-child.pid, 'SIGKILL');
      }
      child.stdout.destroy();
      reject(error);
    };
    const onAbort = (): void => stop(new LazydiskError('ABORTED', `credential helper ${program}: cancelled`));
    const timer = setTimeout(() => {
      stop(failure(program, `no answer within ${timeoutMs} ms`));
    }, timeoutMs);
    const settle = (): void => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', onAbort);
    };
    child.stdout.on('data', (bytes: Buffer) => {
      sizeBytes += bytes.length;
      if (sizeBytes > OUTPUT_BYTES_MAX) stop(failure(program, 'its answer is too long'));
      else parts.push(bytes);
    });
    child.on('error', (error: NodeJS.ErrnoException) => {
      stop(failure(program, error.code === 'ENOENT' ? 'it is not installed' : errorText(error), error));
    });
    child.on('close', (code) => {
      settle();
      resolve({ code, output: Buffer.concat(parts) });
    });
    // It may exit without having read its input.
    child.stdin.on('error', () => undefined);
    child.stdin.end(input);
    signal?.addEventListener('abort', onAbort, { once: true });
    if (signal?.aborted) onAbort();
  });
}
