/** `SOURCE`: prints the digest of the disk that is built from a source, for place.test.ts. */
import { createHash } from 'node:crypto';
import { layoutExt4 } from '../../../src/image/ext4/writer.ts';
import { flatten } from '../../../src/image/flatten.ts';
import { openSource } from '../../../src/image/source/open-source.ts';

const source = await openSource(process.argv[2]!);
const hash = createHash('sha256');
const tree = await flatten(source, async (chunk, bytes) => void hash.update(`data ${chunk} `).update(bytes));
const layout = await layoutExt4(tree, { contentDigest: source.digest });
await layout.emit(async (chunk, bytes) => void hash.update(`metadata ${chunk} `).update(bytes));
await source.close();
process.stdout.write(`${hash.digest('hex')} ${layout.diskBytes}`);
