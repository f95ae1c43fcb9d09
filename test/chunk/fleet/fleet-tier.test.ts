/**
 * The fleet tier fulfils the contract of a tier, on eight nodes, and uses TLS and a login where its nodes require them.
 */
import { execFileSync } from 'node:child_process';
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { FleetTier } from '../../../src/chunk/fleet/fleet-tier.ts';
import type { NodeOptions } from '../../../src/chunk/fleet/node.ts';
import { Memcached } from '../../support/memcached.ts';
import { demand, makeImage } from '../../support/tiers.ts';
import { skipWithout } from '../../support/tools.ts';
import { tierSuite } from '../tier-suite.ts';

function tierOn(
  nodes: readonly Memcached[],
  code = { k: 4, m: 2 },
  node: Partial<NodeOptions> = {},
): FleetTier {
  return new FleetTier({
    code,
    nodes: nodes.map(({ address }) => address),
    node: { connectTimeoutMs: 15_000, inflightMax: 1024, queuedBytesMax: 64 << 20, ...node },
    timeoutMs: 15_000,
    fillBytesMax: 64 << 20,
    // One drive gets three quarters of the places, and the suite has that many loans at once.
    gathersMax: 128,
  });
}

async function cluster(t: Test, count: number, flags: readonly string[] = []): Promise<Memcached[]> {
  const nodes = await Memcached.cluster(count, flags);
  t.teardown(async () => {
    for (const node of nodes) node.resume();
    await Promise.all(nodes.map((node) => node.kill()));
  });
  return nodes;
}

t.test('it fulfils the contract of a tier', async (t) => {
  if (skipWithout(t, 'memcached')) return;
  const nodes = await cluster(t, 8);
  tierSuite(t, async (t) => {
    const tier = tierOn(nodes);
    t.teardown(async () => {
      for (const node of nodes) node.resume();
      await tier.close();
    });
    return {
      tier,
      stall: async () => {
        await Promise.all(nodes.map((node) => node.pause()));
      },
    };
  });
});

t.test('it connects with TLS, a private CA, and a login', async (t) => {
  if (skipWithout(t, 'memcached', 'openssl')) return;
  const dir = mkdtempSync(join(tmpdir(), 'lzd-tls-'));
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  // memcached drops root before it reads them.
  chmodSync(dir, 0o755);
  const [cert, key, users] = ['cert.pem', 'key.pem', 'users'].map((name) => join(dir, name));
  const subject = ['-subj', '/CN=fleet', '-addext', 'subjectAltName=IP:127.0.0.1'];
  const files = ['-keyout', key!, '-out', cert!];
  execFileSync(
    'openssl',
    ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', ...subject, ...files],
    {
      stdio: 'pipe',
    },
  );
  writeFileSync(users!, 'worker:a secret word\n'.replaceAll(' ', '-'));
  for (const path of [cert!, key!, users!]) chmodSync(path, 0o644);
  const nodes = await cluster(t, 3, ['-Z', '-o', `ssl_chain_cert=${cert},ssl_key=${key}`, '-Y', users!]);
  const { chunks } = await makeImage('a');
  const { id, sealed } = chunks[0]!;
  const login = { user: 'worker', password: 'a-secret-word' };

  const tier = tierOn(nodes, { k: 2, m: 1 }, { tls: cert!, login });
  t.teardown(() => tier.close());
  await tier.put(id, sealed);
  const loan = await tier.get(id, sealed.length, demand());
  t.ok(loan && Buffer.from(loan.bytes).equals(sealed));
  loan?.release();

  const wrong = [
    { what: 'another login', options: { tls: cert!, login: { user: 'worker', password: 'guess' } } },
    { what: 'no login', options: { tls: cert! } },
    { what: 'a CA that did not sign', options: { tls: true as const, login } },
    { what: 'no TLS', options: { login } },
  ];
  for (const { what, options } of wrong) {
    const refused = tierOn(nodes, { k: 2, m: 1 }, { connectTimeoutMs: 500, ...options });
    await t.rejects(refused.get(id, sealed.length, demand()), { code: 'UNAVAILABLE' }, what);
    const { nodes: stats } = refused.stats();
    t.ok(
      stats.some(({ lastError }) => lastError),
      `${what}: ${stats.map(({ lastError }) => lastError).join()}`,
    );
    t.notMatch(stats.map(({ lastError }) => lastError).join(), /secret|guess/);
    await refused.close();
  }
});
