import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { checkBudget } from '../../src/daemon/budget.ts';
import { readSettingsFile, resolveConfig } from '../../src/daemon/config.ts';
import { parseAddress } from '../../src/daemon/setting-kinds.ts';
import type { RawSettings } from '../../src/daemon/settings.ts';

const BASE = { store: 'file:///store', cache: '/cache', key: '/key', run_dir: '/run/x' };

t.test('defaults stand where nothing is said', async (t) => {
  const config = resolveConfig(BASE);
  t.equal(config.cacheBytes, 10 * 1024 ** 3);
  t.equal(config.memoryBytes, 512 * 1024 ** 2);
  t.equal(config.logLevel, 'info');
  t.equal(config.nbdTcp, undefined);
  t.ok(config.originTimeoutMs * config.originTries < config.readTimeoutMs);
});

t.test('flags win over the file, and what is not given does not', async (t) => {
  const file = { ...BASE, memory: '64M', cache_size: '2G', metrics: '127.0.0.1:1' };
  const config = resolveConfig(file, { memory: '128M', cache_size: undefined });
  t.equal(config.memoryBytes, 128 * 1024 ** 2);
  t.equal(config.cacheBytes, 2 * 1024 ** 3);
  t.same(config.metrics, { host: '127.0.0.1', port: 1 });
});

t.test('a TOML file has the same names', async (t) => {
  const dir = t.testdir({
    'a.toml': 'store = "file:///s"\ncache_size = 1073741824\norigin_tries = 2\nread_timeout = "30s"\n',
    'bad.toml': 'store = \n',
  });
  const config = resolveConfig(BASE, await readSettingsFile(join(dir, 'a.toml')));
  t.equal(config.store, 'file:///s');
  t.equal(config.cacheBytes, 1024 ** 3);
  t.equal(config.originTries, 2);
  t.equal(config.readTimeoutMs, 30_000);
  const bad = readSettingsFile(join(dir, 'bad.toml'));
  await t.rejects(bad, { code: 'USAGE', message: /bad\.toml/ });
  await bad.catch((error: Error) => t.notMatch(error.message, /\n/, 'one line'));
  await t.rejects(readSettingsFile(join(dir, 'none.toml')), { code: 'NOT_FOUND' });
  writeFileSync(join(dir, 'big.toml'), '#'.repeat(65 * 1024));
  await t.rejects(readSettingsFile(join(dir, 'big.toml')), { code: 'USAGE' });
});

t.test('keys are one or several, in a file as a list, and files are found from here', async (t) => {
  const arn = 'awskms:arn:aws:kms:eu-central-1:111122223333:key/1';
  const dir = t.testdir({ 'keys.toml': `key = ["/a", "b", "${arn}"]\n`, 'none.toml': 'key = []\n' });
  const file = await readSettingsFile(join(dir, 'keys.toml'));
  t.same(resolveConfig(BASE).keys, ['file:/key']);
  t.same(resolveConfig(BASE, file).keys, ['file:/a', `file:${join(process.cwd(), 'b')}`, arn]);
  t.same(resolveConfig(file, BASE, { key: ['file:/c', '/d'] }).keys, ['file:/c', 'file:/d'], 'flags win');
  for (const key of ['', [], [''], 'file:', 'awskms:x', ['/a', 'awskms:arn:aws:s3:::x'], 7])
    t.throws(() => resolveConfig(BASE, { key }), { code: 'USAGE' }, JSON.stringify(key));
  const none = await readSettingsFile(join(dir, 'none.toml'));
  t.throws(() => resolveConfig(BASE, none), { code: 'USAGE', message: /key/ });
});

t.test('everything that is wrong is named at once', async (t) => {
  const wrong: RawSettings = {
    cache: '/c',
    key: '/k',
    run_dir: '/r',
    cache_size: 'lots',
    ...{ colour: 'red' },
  };
  t.throws(() => resolveConfig(wrong), {
    code: 'USAGE',
    message: /store.*cache_size: size "lots".*colour/s,
  });
  for (const value of [
    { memory: '1M' },
    { answer_memory: '31M' },
    { origin_tries: '0' },
    { origin_tries: 'x' },
    { log_level: 'loud' },
    { metrics: 'nowhere' },
    { nbd_tcp: '1.2.3.4:99999' },
    { read_timeout: 25 },
    { read_timeout: '25' },
    { cache: '' },
  ]) {
    t.throws(() => resolveConfig(BASE, value), { code: 'USAGE' }, JSON.stringify(value));
  }
});

t.test('the timeout budget must fit, layer into layer', async (t) => {
  const fits = {
    originTimeoutMs: 5000,
    originTries: 3,
    caches: 1,
    cacheTimeoutMs: 2000,
    readTimeoutMs: 25_000,
    guestTimeoutMs: 60_000,
  };
  checkBudget(fits);
  t.throws(() => checkBudget({ ...fits, originTries: 5 }), {
    code: 'USAGE',
    message: /2000 ms.* 5 × 5000 ms.* 27750 ms/,
  });
  t.throws(
    () => checkBudget({ ...fits, readTimeoutMs: 17_000 }),
    { code: 'USAGE' },
    'pauses and caches count',
  );
  t.throws(() => checkBudget({ ...fits, caches: 2, readTimeoutMs: 19_000 }), {
    code: 'USAGE',
    message: /2 × 2000 ms/,
  });
  t.throws(() => checkBudget({ ...fits, readTimeoutMs: 60_000 }), { code: 'USAGE', message: /guest/ });
  t.throws(() => resolveConfig(BASE, { origin_timeout: '10s' }), { code: 'USAGE', message: /timeouts/ });
});

t.test('a fleet and what belongs to it', async (t) => {
  const url = 'memcached://a:1,b:2?k=2&m=0';
  t.match(resolveConfig(BASE, { fleet: url }).fleet, { url, tls: undefined, timeoutMs: 250 });
  const full = resolveConfig(BASE, {
    fleet: url,
    fleet_tls: 'system',
    fleet_login: '/l',
    fleet_timeout: '1s',
  });
  t.same(full.fleet, { url, tls: 'system', loginFile: '/l', timeoutMs: 1000 });
  t.equal(resolveConfig(BASE, {}).fleet, undefined);
  t.throws(() => resolveConfig(BASE, { fleet: 'memcached://a:1?k=40' }), { code: 'USAGE', message: /k=40/ });
  t.throws(() => resolveConfig(BASE, { fleet: 'redis://a' }), { code: 'USAGE' });
  t.throws(() => resolveConfig(BASE, { fleet_login: '/l' }), { code: 'USAGE', message: /fleet_login/ });
  t.throws(() => resolveConfig(BASE, { origin_rate: '-1' }), { code: 'USAGE', message: /origin_rate/ });
});

t.test('addresses', async (t) => {
  t.same(parseAddress('127.0.0.1:0'), { host: '127.0.0.1', port: 0 });
  t.same(parseAddress('[::1]:9100'), { host: '::1', port: 9100 });
  t.same(parseAddress('localhost:65535'), { host: 'localhost', port: 65535 });
  for (const text of ['', ':80', '::1:80', 'host', 'host:', 'host:70000', 'a b:1', '[::1]']) {
    t.throws(() => parseAddress(text), { code: 'USAGE' }, text);
  }
});
