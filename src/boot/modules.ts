/**
 * The few kernel modules that a guest needs to see its drive, in load order. A package that was never installed has no
 * modules.dep, so each module's dependencies are read from the module itself.
 */
import { readdir, readFile } from 'node:fs/promises';
import { basename, join } from 'node:path';

export interface KernelModule {
  readonly name: string;
  readonly bytes: Buffer;
}

/** `wanted` and their dependencies, dependencies first. A module that has no file is built in, or left out. */
export async function loadModules(directory: string, wanted: readonly string[]): Promise<KernelModule[]> {
  const files = new Map<string, string>();
  for (const file of await readdir(directory, { recursive: true })) {
    if (file.endsWith('.ko')) files.set(basename(file, '.ko').replaceAll('-', '_'), join(directory, file));
  }
  const loaded = new Map<string, KernelModule>();
  const load = async (name: string): Promise<void> => {
    const file = files.get(name);
    if (!file || loaded.has(name)) return;
    const bytes = await readFile(file);
    for (const needed of dependsOf(bytes)) await load(needed);
    loaded.set(name, { name, bytes });
  };
  for (const name of wanted) await load(name);
  return [...loaded.values()];
}

/** A module's .modinfo section holds NUL-separated words; one is `depends=a,b`. */
function dependsOf(module: Buffer): string[] {
  const at = module.indexOf('\0depends=');
  if (at < 0) return [];
  const from = at + '\0depends='.length;
  const words = module.toString('latin1', from, module.indexOf(0, from));
  return words.split(',').filter((word) => word !== '');
}
