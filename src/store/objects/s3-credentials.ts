/**
 * Credentials for S3, from the AWS SDK's own provider chain, where every AWS tool looks for them. The SDK is loaded
 * only if they are not in the environment. They are renewed before they expire, and when the store rejects them.
 */
import { errorText, LazydiskError } from '../../errors.ts';

/** Minimum time between forced refreshes. */
const REFRESH_MS_MIN = 500;

export interface S3Credentials {
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
  readonly sessionToken?: string;
  readonly expiration?: Date;
}

type Provider = (options?: { forceRefresh?: boolean }) => Promise<S3Credentials>;

export class S3CredentialSource {
  /** Counts changes of credentials: a request that was rejected with older ones is retried at once. */
  generation = 0;
  /** When the credentials last used expire, in milliseconds since 1970, if they say so. */
  expiryMs: number | undefined;
  readonly #region: () => string;
  #provider: Provider | undefined;
  #refreshing: Promise<boolean> | undefined;
  #refreshedAt = Number.NEGATIVE_INFINITY;

  /** `region` is the region of the token service, if one is needed. */
  constructor(region: () => string) {
    this.#region = region;
  }

  /** Throws UNAVAILABLE. */
  async get(): Promise<S3Credentials> {
    try {
      this.#provider ??= await findProvider(this.#region);
      const credentials = await this.#provider();
      this.expiryMs = credentials.expiration?.getTime();
      return credentials;
    } catch (cause) {
      throw new LazydiskError('UNAVAILABLE', `no credentials: ${errorText(cause)}`, { cause });
    }
  }

  /** Returns whether there are newer credentials than those of `generation`. One refresh serves all callers. */
  async refresh(generation: number): Promise<boolean> {
    if (generation !== this.generation) return true;
    if (!this.#refreshing && performance.now() - this.#refreshedAt < REFRESH_MS_MIN) return false;
    this.#refreshing ??= this.#renew().finally(() => {
      this.#refreshing = undefined;
      this.#refreshedAt = performance.now();
    });
    return this.#refreshing;
  }

  async #renew(): Promise<boolean> {
    try {
      const before = await this.get();
      const after = await this.#provider!({ forceRefresh: true });
      const isOther = after.accessKeyId !== before.accessKeyId || after.sessionToken !== before.sessionToken;
      if (isOther) this.generation++;
      return isOther;
    } catch {
      // The original rejection then stands.
      return false;
    }
  }
}

async function findProvider(region: () => string): Promise<Provider> {
  const own = fromEnvironment();
  if (own) return async () => own;
  const { defaultProvider } = await import('@aws-sdk/credential-provider-node');
  return defaultProvider({ parentClientConfig: { region: async () => region() } });
}

/** Undefined if a profile is named: the SDK then prefers that. */
function fromEnvironment(): S3Credentials | undefined {
  const {
    AWS_PROFILE,
    AWS_ACCESS_KEY_ID: accessKeyId,
    AWS_SECRET_ACCESS_KEY: secretAccessKey,
    AWS_SESSION_TOKEN: sessionToken,
    AWS_CREDENTIAL_EXPIRATION: expiration,
  } = process.env;
  if (AWS_PROFILE || !accessKeyId || !secretAccessKey) return undefined;
  return {
    accessKeyId,
    secretAccessKey,
    ...(sessionToken && { sessionToken }),
    ...(expiration && { expiration: new Date(expiration) }),
  };
}
