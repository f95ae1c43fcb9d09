/** `STORE KEYFILE IMAGE OUT`: exports, and reports the result on standard error; a child process of export.test.ts. */
import { LazydiskError } from '../../src/errors.ts';
import { exportImage } from '../../src/image/export.ts';
import { loadKeyFile } from '../../src/keys/key-file.ts';
import { KeyRing } from '../../src/keys/key-ring.ts';
import { loadImage } from '../../src/store/image.ts';
import { openStore } from '../../src/store/open.ts';

const [url, keyFile, name, out] = process.argv.slice(2);
const store = await openStore(url!);
try {
  const image = await loadImage(store, name!, KeyRing.of(await loadKeyFile(keyFile!)));
  await exportImage({ image, store, out: out! });
  console.error('done');
} catch (error) {
  console.error(error instanceof LazydiskError ? error.code : error);
  process.exitCode = 1;
}
