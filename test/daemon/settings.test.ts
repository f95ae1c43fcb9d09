/** The table of settings, and what is generated from it. */
import t from 'tap';
import { serveCommand } from '../../src/cli/serve.ts';
import { resolveConfig } from '../../src/daemon/config.ts';
import { defaultText, SETTING_ROWS, type Setting } from '../../src/daemon/settings.ts';
import { settingsPage } from '../support/settings-page.ts';

t.test('each default is a value that the setting takes', async (t) => {
  for (const [name, { kind, default: standard }] of SETTING_ROWS)
    if (typeof standard === 'string') t.doesNotThrow(() => kind.parse(standard), name);
});

t.test('each setting is a flag of serve, with its default in the help', async (t) => {
  const flags = new Map(serveCommand().options.map((option) => [option.name().replaceAll('-', '_'), option]));
  flags.delete('config');
  t.same(
    [...flags.keys()],
    SETTING_ROWS.map(([name]) => name),
  );
  for (const [name, setting] of SETTING_ROWS) {
    const standard = defaultText(setting);
    if (standard !== undefined) t.ok(flags.get(name)?.description.endsWith(`(default: ${standard})`), name);
  }
});

t.test('each setting has a field of its own in the configuration', async (t) => {
  const config = resolveConfig({
    store: 's',
    key: 'k',
    run_dir: '/r',
    cache: 'c',
    fleet: 'memcached://a:1,b:2?k=2&m=0',
    nbd_tcp: 'a:1',
    metrics: 'a:2',
    origin_rate: 5,
    origin_bandwidth: '1M',
    fleet_tls: 'system',
    fleet_login: 'l',
    starts_max: '7',
  });
  t.same(
    SETTING_ROWS.map(([, { field }]: [string, Setting]) => field).toSorted(),
    Object.keys(config)
      .filter((field) => field !== 'fleet')
      .toSorted(),
  );
  t.match(config, {
    originRate: 5,
    originBandwidth: 1024 ** 2,
    startsMax: 7,
    nbdTcp: { host: 'a', port: 1 },
  });
});

t.test(
  'values out of bounds, of another type or without a unit are refused by name, and not repeated',
  async (t) => {
    const base = { store: 's', key: 'k', run_dir: '/r', cache: 'c' };
    const wrong = {
      cache_size: [-1, 1.5, true, '', '1 apple'],
      memory: ['7M', 0],
      origin_tries: [0, 21, 1.5, '1e1', '0x3', ' 3', null, [3]],
      origin_rate: ['0', '-1', 2e6, Number.NaN],
      read_timeout: ['25', 25, ['25s']],
      log_level: ['loud', 3],
      metrics: ['x', 'x:70000', 9600],
      store: ['', 7, ['s']],
      key: [[], [''], 7, { secret: 'hunter2' }],
    };
    for (const [name, values] of Object.entries(wrong)) {
      for (const value of values) {
        const what = `${name} = ${JSON.stringify(value)}`;
        t.throws(
          () => resolveConfig(base, { [name]: value ?? {} }),
          { code: 'USAGE', message: new RegExp(name) },
          what,
        );
      }
    }
    t.throws(() => resolveConfig(base, { key: { secret: 'hunter2' } }), { message: /^(?!.*hunter2)/ });
  },
);

t.test('the table in systemd/README.md is the table of settings; else run `npm run docs`', async (t) => {
  const { is, should } = settingsPage();
  t.equal(is, should);
});
