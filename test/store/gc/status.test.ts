/** What `gc status` reports about ages. */
import t from 'tap';
import { TenantKey } from '../../../src/format/keys.ts';
import { purge } from '../../../src/store/gc/purge.ts';
import { gcStatus } from '../../../src/store/gc/status.ts';
import { sweep } from '../../../src/store/gc/sweep.ts';
import { leaseKey } from '../../../src/store/roots/layout.ts';
import { AGING_POLICY, agingStore, diskOf, RETENTION_MS } from '../../support/aging-store.ts';
import { withCalls } from '../../support/fsck-store.ts';
import { putDisk } from '../../support/stored-disk.ts';

const key = TenantKey.generate();

t.test('ages are told by the clock of the store, as purge tells them', async (t) => {
  const { disk, open, openOn, pass, store } = await agingStore(t);
  const gone = await putDisk(store, key, 'gone', diskOf());
  await (await store.writer()).removeReference('gone');
  pass(AGING_POLICY.graceMs + 1_000);
  const { trash } = await sweep(store.parts);
  await store.parts.objects.put(leaseKey(gone.digest, 'host-1'), Buffer.alloc(0));
  t.match(await gcStatus(store.parts), {
    leases: { current: 1, over: 0 },
    areas: [{}, { area: trash, heldBecause: 'kept for its retention' }],
  });
  // This machine's clock does not move.
  pass(RETENTION_MS);
  const over = { leases: { current: 0, over: 1 }, areas: [{}, { area: trash, heldBecause: null }] };
  t.match(await gcStatus((await open()).parts), over);
  const refusing = withCalls(disk(), { nowMs: () => Promise.reject(new Error('EROFS')) });
  await t.rejects(gcStatus((await openOn(refusing)).parts), { message: 'EROFS' });
  t.match(await purge((await open()).parts), { purged: [trash] });
});
