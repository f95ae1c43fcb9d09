/**
 * What commands answer with --json has the shape that their help tells of. `lazydisk` of test/support/daemon.ts holds every
 * answer in the suite to it; here is that it does, and the control API's answers, which the commands pass on.
 */
import { request } from 'node:http';
import t from 'tap';
import { ANSWERS } from '../../src/cli/answers.ts';
import { createProgram } from '../../src/cli/program.ts';
import {
  daemonStatusShape,
  driveInfoShape,
  driveStatShape,
  errorBodyShape,
  imageDetailShape,
  imageInfoShape,
} from '../../src/daemon/api-shapes.ts';
import { runPaths } from '../../src/daemon/run-paths.ts';
import { list, object, type Shape, text } from '../../src/shape.ts';
import { checkAnswer, diskWorkplace, lazydisk, lazydiskJson, TestDaemon } from '../support/daemon.ts';

t.test('every command with --json has a shape, whose fields end its help', async (t) => {
  const program = await createProgram([]);
  const found: string[] = [];
  const visit = (command: typeof program, words: string): void => {
    for (const child of command.commands) visit(child, `${words} ${child.name()}`.trim());
    if (!command.options.some(({ long }) => long === '--json')) return;
    found.push(words);
    let help = '';
    command.configureOutput({ writeOut: (part) => (help += part) }).outputHelp();
    const { fields } = ANSWERS[words as keyof typeof ANSWERS];
    t.ok(help.replaceAll('\n', ' ').trimEnd().endsWith(`JSON:${fields}`), words);
    t.notOk(
      help.split('\n').some((line) => line.startsWith('JSON') && line.length > 120),
      words,
    );
  };
  visit(program, '');
  t.same(found.sort(), Object.keys(ANSWERS).sort());
});

t.test('an answer with a field too many or too few does not pass', async (t) => {
  const good = { name: 'app:1', digest: 'sha256:0' };
  checkAnswer(['tag'], good);
  t.throws(() => checkAnswer(['tag'], { ...good, colour: 'red' }), /tag: want no field "colour"/);
  t.throws(() => checkAnswer(['tag'], { name: 'app:1' }), /tag: digest: want text/);
  t.throws(() => checkAnswer(['gc', 'nothing'], {}), /no shape/);
});

t.test('what commands answer of a store', async (t) => {
  const { store, key, dir } = await diskWorkplace(t);
  const at = ['--store', store];
  await lazydiskJson(['tag', 'app:1', 'other', ...at]);
  await lazydiskJson(['inspect', 'app:1', ...at]);
  await lazydiskJson(['inspect', 'app:1', ...at, '--key', key]);
  await lazydiskJson(['images', ...at, '--history']);
  await lazydiskJson(['export', 'app:1', `${dir}/disk`, ...at, '--key', key]);
  await lazydiskJson(['copy', 'app:1', store, `${dir}/copy`]);
  await lazydiskJson(['fsck', ...at, '--key', key]);
  for (const words of [['status'], ['run'], ['policy'], ['rotate', '--dry-run']])
    await lazydiskJson(['gc', ...words, ...at]);
  await lazydiskJson(['rm', 'other', ...at]);
  await lazydiskJson(['key', 'list', ...at]);
  const { code, stdout } = await lazydisk(['rm', 'none', ...at, '--json']);
  t.equal(code, 3);
  t.match(JSON.parse(stdout), { failures: [{ code: 'NOT_FOUND' }] });
});

/** The status and the answer of a route of the control API. */
function ask(runDir: string, method: string, path: string, body?: unknown): Promise<[number, unknown]> {
  return new Promise((resolve, reject) => {
    const options = { socketPath: runPaths(runDir).control, method, path, agent: false };
    const asked = request(options, (response) => {
      let answer = '';
      response.setEncoding('utf8').on('data', (part: string) => (answer += part));
      response.once('error', reject);
      response.once('end', () => resolve([response.statusCode!, JSON.parse(answer)]));
    });
    asked.once('error', reject);
    asked.end(body === undefined ? undefined : JSON.stringify(body));
  });
}

t.test('what the control API answers', async (t) => {
  const place = await diskWorkplace(t);
  const daemon = await TestDaemon.start(t, place);
  const holds = async (shape: Shape<unknown>, status: number, ...words: [string, string, unknown?]) => {
    const [got, answer] = await ask(place.runDir, ...words);
    t.equal(got, status, words.join(' '));
    t.equal(shape.problem(answer, ''), undefined, words.join(' '));
  };
  await holds(driveInfoShape, 201, 'POST', '/v1/drives', { image: 'app:1', name: 'web' });
  await holds(object({ drives: list(driveInfoShape, { min: 1 }) }), 200, 'GET', '/v1/drives');
  await holds(driveStatShape, 200, 'GET', '/v1/drives/web');
  await holds(daemonStatusShape, 200, 'GET', '/v1/status');
  await holds(object({ images: list(imageInfoShape, { min: 1 }) }), 200, 'GET', '/v1/images');
  await holds(imageDetailShape, 200, 'GET', '/v1/images/app:1');
  await holds(errorBodyShape, 404, 'GET', '/v1/fleet');
  for (const words of [['drives'], ['stat', 'web'], ['status'], ['images'], ['inspect', 'app:1']])
    await daemon.ask(...words);
  await holds(object({ name: text() }), 200, 'DELETE', '/v1/drives/web');
});
