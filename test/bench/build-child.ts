/** `SOURCE STORE`: one build, in a process of its own so that its memory can be measured; a child of build.ts. */
import { TenantKey } from '../../src/format/keys.ts';
import { buildImage } from '../../src/image/build.ts';
import { openSource } from '../../src/image/source.ts';
import { openStore } from '../../src/store/open.ts';

const [spec, url] = process.argv.slice(2);
const source = await openSource(spec!);
const store = await openStore(url!, { create: true });
await buildImage({ source, store, key: TenantKey.generate(), name: 'bench' });
await store.close();
await source.close();
