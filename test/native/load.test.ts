/** The messages when the addon cannot be loaded or built. */
import { execFile } from 'node:child_process';
import { cpSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import t from 'tap';

const run = promisify(execFile);
const NATIVE_DIR = join(import.meta.dirname, '..', '..', 'native');

t.test('an addon that is not built names the command that builds it', async (t) => {
  const index = join(NATIVE_DIR, 'index.ts');
  const program = `import(${JSON.stringify(index)}).catch(e => console.log(e.code, e.message))`;
  const env = { ...process.env, LAZYDISK_NATIVE: '/nonexistent/lazydisk.node' };
  const { stdout } = await run(process.execPath, ['-e', program], { env });
  t.match(stdout, /^UNAVAILABLE .*npm run build:native/);
});

t.test('a build without a compiler names the package', async (t) => {
  const dir = t.testdir();
  cpSync(join(NATIVE_DIR, 'build.ts'), join(dir, 'build.ts'));
  const env = { ...process.env, PATH: dirname(process.execPath) };
  const failure = await run(process.execPath, [join(dir, 'build.ts')], { env }).catch((error) => error);
  t.equal(failure.code, 1);
  t.match(failure.stderr, /apt-get install g\+\+\n$/);
});

t.test('a second build finds everything up to date', async (t) => {
  const { stdout } = await run(process.execPath, [join(NATIVE_DIR, 'build.ts')]);
  t.match(stdout, /up to date|built/);
  const again = await run(process.execPath, [join(NATIVE_DIR, 'build.ts')]);
  t.match(again.stdout, /up to date/);
});
