/**
 * `SOURCE STORE KEYFILE NAME PUTS`: a build whose store hangs after PUTS chunks were stored. It reports that on
 * standard output, so that build.test.ts can kill it at that point.
 */
import { buildImage } from '../../src/image/build.ts';
import { openSource } from '../../src/image/source/open-source.ts';
import { loadKeyFile } from '../../src/keys/key-file.ts';
import { openStore } from '../../src/store/open.ts';

const [spec, url, keyFile, name, putsText] = process.argv.slice(2);
const store = await openStore(url!, { create: true });
const newWriter = store.writer.bind(store);
let puts = 0;
store.writer = async () => {
  const writer = await newWriter();
  const putChunk = writer.putChunk.bind(writer);
  writer.putChunk = async (id, sealed) => {
    await putChunk(id, sealed);
    if (++puts < Number(putsText)) return;
    process.stdout.write('hanging\n');
    await new Promise(() => setInterval(() => undefined, 1000));
  };
  return writer;
};
await buildImage({ source: await openSource(spec!), store, key: await loadKeyFile(keyFile!), name: name! });
await store.close();
process.stdout.write('finished\n');
