/**
 * Builds the native addon with one g++ command against the headers of the Node that runs this, so that neither node-gyp
 * nor Python is needed: `node native/build.ts [--asan]`. The addon links no library: OpenSSL, zstd and libuv are found
 * in the node binary at load time. The output is written under a temporary name and renamed. The build is skipped when
 * sources, flags and Node are those of the last build.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';

const NATIVE_DIR = import.meta.dirname;

/** The path from which `index.ts` loads the addon. */
export const ADDON_PATH = join(NATIVE_DIR, 'build', 'lazydisk.node');
/** The addon with AddressSanitizer, for test/native/asan.ts. */
export const ASAN_ADDON_PATH = join(NATIVE_DIR, 'build', 'asan', 'lazydisk.node');

const FLAGS = ['-std=c++20', '-fPIC', '-shared', '-pthread', '-fvisibility=hidden', '-Wall', '-Wextra'];
const RELEASE_FLAGS = ['-O2'];
const ASAN_FLAGS = ['-O1', '-g', '-fno-omit-frame-pointer', '-fsanitize=address'];

/** Builds unless the build is up to date. Returns a message, and `ok` false if something is missing or failed. */
export function buildNative(asan: boolean): { ok: boolean; text: string } {
  const include = resolve(dirname(process.execPath), '..', 'include', 'node');
  if (!existsSync(join(include, 'node_api.h'))) {
    return {
      ok: false,
      text: `no Node headers at ${include}: run "npm run build:native", which uses a Node that has them`,
    };
  }
  const output = asan ? ASAN_ADDON_PATH : ADDON_PATH;
  const sources = readdirSync(NATIVE_DIR).filter((name) => /\.(cc|h)$/.test(name));
  const flags = [...FLAGS, ...(asan ? ASAN_FLAGS : RELEASE_FLAGS)];
  const stampPath = `${output}.stamp`;
  const stamp = stampOf(sources.sort(), flags);
  if (existsSync(output) && existsSync(stampPath) && readFileSync(stampPath, 'latin1') === stamp) {
    return { ok: true, text: `${output} is up to date` };
  }
  if (spawnSync('g++', ['--version']).error) {
    return { ok: false, text: 'the native addon needs a C++ compiler: apt-get install g++' };
  }
  mkdirSync(dirname(output), { recursive: true });
  const temporary = `${output}.${process.pid}`;
  const units = sources.filter((name) => name.endsWith('.cc')).map((name) => join(NATIVE_DIR, name));
  try {
    execFileSync('g++', [...flags, `-I${include}`, '-o', temporary, ...units], { stdio: 'inherit' });
    renameSync(temporary, output);
  } catch {
    rmSync(temporary, { force: true });
    return { ok: false, text: 'g++ failed: see above' };
  }
  writeFileSync(stampPath, stamp);
  return { ok: true, text: `built ${output}` };
}

function stampOf(sources: string[], flags: string[]): string {
  const digest = createHash('sha256');
  digest.update(JSON.stringify([process.version, process.arch, process.execPath, flags]));
  for (const name of sources) digest.update(`\0${name}\0`).update(readFileSync(join(NATIVE_DIR, name)));
  return digest.digest('hex');
}

if (import.meta.main) {
  const { ok, text } = buildNative(process.argv.includes('--asan'));
  process[ok ? 'stdout' : 'stderr'].write(`${text}\n`);
  process.exitCode = ok ? 0 : 1;
}
