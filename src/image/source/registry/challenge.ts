/** Parses the challenges by which a server asks for authentication. Source: RFC 9110, section 11.6.1. */

export interface Challenge {
  /** In lower case. */
  readonly scheme: string;
  /** By name in lower case. */
  readonly parameters: ReadonlyMap<string, string>;
}

const LENGTH_MAX = 16 * 1024;
const CHALLENGES_MAX = 16;
const PARAMETERS_MAX = 32;

const TOKEN = "[!#$%&'*+.^_`|~0-9A-Za-z-]+";
const QUOTED = '"((?:[^"\\\\]|\\\\.)*)"';
const COMMAS = /[ \t,]*/y;
const SCHEME = new RegExp(`(${TOKEN})(?:[ \\t]+|(?=,)|$)`, 'y');
/** A single token in place of parameters. */
const TOKEN68 = /[A-Za-z0-9._~+/-]+=*[ \t]*(?=,|$)/y;
const PARAMETER = new RegExp(`(${TOKEN})[ \\t]*=[ \\t]*(?:${QUOTED}|(${TOKEN}))[ \\t]*(?=,|$)`, 'ys');

/** Returns the challenges in a `www-authenticate` header, up to the first malformed one or the limit. Never throws. */
export function parseChallenges(header: string): Challenge[] {
  const challenges: Challenge[] = [];
  if (header.length > LENGTH_MAX) return challenges;
  let at = 0;
  const take = (pattern: RegExp): RegExpExecArray | undefined => {
    pattern.lastIndex = at;
    const match = pattern.exec(header) ?? undefined;
    if (match) at = pattern.lastIndex;
    return match;
  };
  while (challenges.length < CHALLENGES_MAX) {
    take(COMMAS);
    const scheme = take(SCHEME)?.[1];
    if (scheme === undefined) break;
    const parameters = new Map<string, string>();
    challenges.push({ scheme: scheme.toLowerCase(), parameters });
    if (take(TOKEN68)) continue;
    for (let found = take(PARAMETER); found; found = take(PARAMETER)) {
      const [, name = '', quoted, plain = ''] = found;
      if (parameters.size < PARAMETERS_MAX) {
        parameters.set(name.toLowerCase(), quoted?.replace(/\\(.)/gs, '$1') ?? plain);
      }
      take(COMMAS);
    }
  }
  return challenges;
}
