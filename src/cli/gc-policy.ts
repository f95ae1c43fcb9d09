/** `lazydisk gc policy`: shows or sets the times that all users of a store observe. */
import { Command } from 'commander';
import type { StorePolicy } from '../store/roots/policy.ts';
import { formatDuration, parseDuration } from '../units.ts';
import { answer, type JsonOptions, storeOption, usingStore, withJson } from './context.ts';
import { list } from './table.ts';

const TIMES = ['grace', 'retention', 'build', 'view', 'settle'] as const;

type PolicyOptions = JsonOptions & { readonly store?: string } & {
  readonly [Time in (typeof TIMES)[number]]?: string;
};

export function policyCommand(): Command {
  return withJson(new Command('policy'), 'gc policy')
    .description('show the times that all users of a store keep to, or set some of them')
    .addOption(storeOption())
    .option('--grace <time>', 'what has lost its last name is garbage after this (new stores: 7d)')
    .option('--retention <time>', 'what was put aside is deleted when not read for this long (7d)')
    .option('--build <time>', 'the longest that a build or a copy may take (1d)')
    .option('--view <time>', 'the longest that a process goes by what it knows of the roots (1m)')
    .option('--settle <time>', 'how far listings may lag, and requests that were given up (1m)')
    .addHelpText(
      'after',
      `
Grace and retention must each be at least build + view + 4 × settle. Lower them, and space comes back sooner: grace is
how long \`tag sha256:…\` surely brings an image back that lost its name, retention how long a drive may stay attached
without reading, after its image lost its name, and still find everything. Lower build, and builds that take
longer fail. What is put aside already goes by the new times, too. A process keeps the times that it began with: when
build, view or settle change, restart daemons, and let no gc command run until everything that began before is over (at
most the old build time).`,
    )
    .action(policy);
}

async function policy(options: PolicyOptions): Promise<void> {
  const given: { -readonly [Time in keyof StorePolicy]?: number } = {};
  for (const time of TIMES) {
    const text = options[time];
    if (text !== undefined) given[`${time}Ms`] = parseDuration(text);
  }
  const isSet = Object.keys(given).length > 0;
  const result = await usingStore(options, async ({ parts }): Promise<StorePolicy> => {
    if (!isSet) return parts.policy;
    const { setPolicy } = await import('../store/gc/set-policy.ts');
    return setPolicy(parts, given);
  });
  answer(options, result, () => list(TIMES.map((time) => [time, formatDuration(result[`${time}Ms`])])));
}
