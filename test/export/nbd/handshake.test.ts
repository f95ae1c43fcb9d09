/** The negotiation, option by option, over a real socket. */
import t from 'tap';
import {
  BLOCK_SIZE,
  COMMAND,
  INFO,
  NBD_ERROR,
  OPTION,
  REPLY,
  TRANSMISSION_FLAGS,
} from '../../../src/export/nbd/protocol.ts';
import { BufferDevice } from '../../support/buffer-device.ts';
import { contextQuery, goData, NbdClient, optionBytes } from '../../support/nbd-client.ts';
import { content, serve } from './serving.ts';

const bytes = content(2);
const { hasFlags, readOnly, sendFlush, sendDf, canMultiConn, sendCache } = TRANSMISSION_FLAGS;
const FLAGS = hasFlags | readOnly | sendFlush | sendDf | canMultiConn | sendCache;

function drive(name: string): BufferDevice {
  return new BufferDevice(bytes, { name });
}

const types = (replies: readonly { type: number }[]) => replies.map(({ type }) => type);

t.test('the greeting offers fixed newstyle and no zeroes', async (t) => {
  const { where } = await serve(t, [drive('a')]);
  const client = await NbdClient.raw(where);
  t.equal((await client.read(18)).toString('latin1'), 'NBDMAGICIHAVEOPT\0\x03');
  client.close();
});

t.test('an export is read-only, and allows several connections, if its device never changes', async (t) => {
  const { where } = await serve(t, [new BufferDevice(bytes, { name: 'w', readOnly: false })]);
  const client = await NbdClient.connect(where, 3);
  client.option(OPTION.exportName, Buffer.from('w'));
  t.equal((await client.read(10)).readUInt16BE(8), hasFlags | sendFlush | sendDf | sendCache);
  const { error } = await client.request({ type: COMMAND.trim, lengthBytes: 4096 });
  t.equal(error, NBD_ERROR.ENOTSUP);
  client.close();
});

for (const flags of [0, 2, 4, 7, 0x80000001]) {
  t.test(`client flags ${flags.toString(16)} close the connection without an answer`, async (t) => {
    const { where } = await serve(t, [drive('a')]);
    const client = await NbdClient.connect(where, flags);
    t.equal((await client.rest()).length, 0);
  });
}

for (const [flags, lengthBytes] of [
  [1, 134],
  [3, 10],
] as const) {
  t.test(`EXPORT_NAME after flags ${flags} is answered with ${lengthBytes} bytes`, async (t) => {
    const { where } = await serve(t, [drive('a'), drive('b')]);
    const client = await NbdClient.connect(where, flags);
    client.option(OPTION.exportName, Buffer.from('b'));
    const reply = await client.read(lengthBytes);
    t.equal(Number(reply.readBigUInt64BE(0)), bytes.length);
    t.equal(reply.readUInt16BE(8), FLAGS);
    t.equal(
      reply.subarray(10).every((byte) => byte === 0),
      true,
    );
    const answer = await client.request({ type: COMMAND.read, offset: 512, lengthBytes: 1000 });
    t.ok(answer.data.equals(bytes.subarray(512, 1512)), 'reads follow directly');
    client.close();
  });
}

t.test('EXPORT_NAME of an unknown export closes the connection, because it has no error reply', async (t) => {
  const { where } = await serve(t, [drive('a')]);
  const client = await NbdClient.connect(where);
  client.option(OPTION.exportName, Buffer.from('other'));
  t.equal((await client.rest()).length, 0);
});

t.test('ABORT is acknowledged, and the connection closed', async (t) => {
  const { where } = await serve(t, [drive('a')]);
  const client = await NbdClient.connect(where);
  t.same(types(await client.ask(OPTION.abort)), [REPLY.ack]);
  t.equal((await client.rest()).length, 0);
});

t.test('LIST names every drive', async (t) => {
  const names = Array.from({ length: 2000 }, (_, n) => `drive-${n}`);
  const { where } = await serve(t, names.map(drive));
  const client = await NbdClient.connect(where);
  const replies = await client.ask(OPTION.list);
  t.same(
    replies.slice(0, -1).map(({ data }) => data.toString('utf8', 4)),
    names,
  );
  t.ok(
    replies
      .slice(0, -1)
      .every(({ type, data }) => type === REPLY.server && data.readUInt32BE() === data.length - 4),
  );
  t.equal(replies.at(-1)!.type, REPLY.ack);
  client.close();
});

t.test('a client that asks for long lists again and again is disconnected', async (t) => {
  const names = Array.from({ length: 1000 }, (_, n) => `${n}-`.padEnd(128, 'x'));
  const { where } = await serve(t, names.map(drive));
  const client = await NbdClient.connect(where);
  for (let n = 0; n < 200; n++) client.option(OPTION.list);
  const listBytes = 1000 * (20 + 4 + 128) + 20;
  const rest = await client.rest();
  t.ok(rest.length >= listBytes, 'the first list came');
  t.ok(rest.length <= (8 + 1 + 1) * 1024 * 1024, `${rest.length} bytes in all`);
});

t.test('a client that asks about one export after another may take its time', async (t) => {
  const names = Array.from({ length: 520 }, (_, n) => `drive-${n}`);
  const { where } = await serve(t, names.map(drive), { handshakeTimeoutMs: 3000 });
  const client = await NbdClient.connect(where);
  await client.ask(OPTION.structuredReply);
  const startedAt = performance.now();
  for (const [n, name] of names.entries()) {
    t.equal((await client.ask(OPTION.info, goData(name))).at(-1)!.type, REPLY.ack);
    t.equal((await client.ask(OPTION.listMetaContext, contextQuery(name, []))).at(-1)!.type, REPLY.ack);
    // As slow as libnbd over TCP, where the last packet of a question waits for 200 ms; in total longer than one
    // timeout.
    if (n % 26 === 0) await new Promise((resolve) => setTimeout(resolve, 200));
  }
  t.ok(performance.now() - startedAt > 3000);
  t.equal((await client.ask(OPTION.go, goData('drive-519'))).at(-1)!.type, REPLY.ack);
  client.close();
});

for (const [name, option] of [
  ['LIST', OPTION.list],
  ['STRUCTURED_REPLY', OPTION.structuredReply],
] as const) {
  t.test(`${name} with data is invalid, and the next option is understood`, async (t) => {
    const { where } = await serve(t, [drive('a')]);
    const client = await NbdClient.connect(where);
    t.same(types(await client.ask(option, Buffer.from('data'))), [REPLY.invalid]);
    t.same(types(await client.ask(option)).at(-1), REPLY.ack);
    client.close();
  });
}

for (const option of [4, OPTION.startTls, 11, 99, 0xffffffff]) {
  t.test(`option ${option} is not supported, its data skipped`, async (t) => {
    const { where } = await serve(t, [drive('a')]);
    const client = await NbdClient.connect(where);
    t.same(types(await client.ask(option, Buffer.alloc(60_000, 1))), [REPLY.unsupported]);
    t.same(types(await client.ask(OPTION.go, goData('a'))), [REPLY.info, REPLY.ack]);
    client.close();
  });
}

for (const [name, option] of [
  ['INFO', OPTION.info],
  ['GO', OPTION.go],
] as const) {
  t.test(`${name} reports size and flags`, async (t) => {
    const { where } = await serve(t, [drive('a')]);
    const client = await NbdClient.connect(where);
    const [info, ack] = await client.ask(option, goData('a'));
    t.same([info!.type, ack!.type], [REPLY.info, REPLY.ack]);
    t.equal(info!.data.length, 12);
    t.equal(info!.data.readUInt16BE(0), INFO.export);
    t.equal(Number(info!.data.readBigUInt64BE(2)), bytes.length);
    t.equal(info!.data.readUInt16BE(10), FLAGS);
    client.close();
  });

  t.test(`${name} reports name, description and block sizes if asked, each once`, async (t) => {
    const { where } = await serve(t, [drive('a')]);
    const client = await NbdClient.connect(where);
    const wanted = [INFO.name, INFO.description, INFO.blockSize, INFO.blockSize, 77];
    const replies = await client.ask(option, goData('a', wanted));
    const infos = new Map(replies.slice(0, -1).map(({ data }) => [data.readUInt16BE(0), data.subarray(2)]));
    t.equal(replies.length, 5);
    t.equal(infos.get(INFO.name)!.toString(), 'a');
    t.match(infos.get(INFO.description)!.toString(), 'sha256:a');
    const sizes = infos.get(INFO.blockSize)!;
    t.same(
      [sizes.readUInt32BE(0), sizes.readUInt32BE(4), sizes.readUInt32BE(8)],
      [BLOCK_SIZE.minimum, BLOCK_SIZE.preferred, BLOCK_SIZE.maximum],
    );
    client.close();
  });

  t.test(`${name} of an unknown name is refused by name, and another one may follow`, async (t) => {
    const { where } = await serve(t, [drive('a')]);
    const client = await NbdClient.connect(where);
    const [refused] = await client.ask(option, goData('b'));
    t.equal(refused!.type, REPLY.unknown);
    t.match(refused!.data.toString(), '"b"');
    t.same(types(await client.ask(option, goData('a'))), [REPLY.info, REPLY.ack]);
    client.close();
  });

  t.test(`${name} of the empty name selects the only drive, and none if there are two`, async (t) => {
    const { where, registry } = await serve(t, [drive('a')]);
    const client = await NbdClient.connect(where);
    t.same(types(await client.ask(OPTION.info, goData(''))), [REPLY.info, REPLY.ack]);
    registry.add(drive('b'));
    t.same(types(await client.ask(option, goData(''))), [REPLY.unknown]);
    client.close();
  });

  t.test(`${name} with lengths that do not fit is invalid`, async (t) => {
    const { where } = await serve(t, [drive('a')]);
    const client = await NbdClient.connect(where);
    const good = goData('a', [1, 2]);
    const longName = Buffer.from(good);
    longName.writeUInt32BE(0xffffffff, 0);
    const manyInfos = Buffer.from(good);
    manyInfos.writeUInt16BE(0xffff, 5);
    const cases = [
      Buffer.alloc(0),
      Buffer.alloc(5),
      good.subarray(0, good.length - 1),
      Buffer.concat([good, Buffer.alloc(1)]),
      longName,
      manyInfos,
      goData('x'.repeat(4097)),
    ];
    for (const data of cases) t.same(types(await client.ask(option, data)), [REPLY.invalid]);
    client.close();
  });
}

t.test('meta contexts before structured replies are invalid', async (t) => {
  const { where } = await serve(t, [drive('a')]);
  const client = await NbdClient.connect(where);
  for (const option of [OPTION.listMetaContext, OPTION.setMetaContext])
    t.same(types(await client.ask(option, contextQuery('a', ['base:allocation']))), [REPLY.invalid]);
  client.close();
});

t.test('LIST_META_CONTEXT finds base:allocation without queries, by name, and by namespace', async (t) => {
  const { where } = await serve(t, [drive('a')]);
  const client = await NbdClient.connect(where);
  await client.ask(OPTION.structuredReply);
  for (const queries of [[], ['base:allocation'], ['base:'], ['x:y', 'base:allocation']]) {
    const replies = await client.ask(OPTION.listMetaContext, contextQuery('a', queries));
    t.same(types(replies), [REPLY.metaContext, REPLY.ack], queries.join());
    t.equal(replies[0]!.data.toString('utf8', 4), 'base:allocation');
  }
  t.same(types(await client.ask(OPTION.listMetaContext, contextQuery('a', ['qemu:']))), [REPLY.ack]);
  client.close();
});

t.test('SET_META_CONTEXT accepts the contexts that it knows, and no wildcards', async (t) => {
  const { where } = await serve(t, [drive('a')]);
  const client = await NbdClient.connect(where);
  await client.ask(OPTION.structuredReply);
  const set = async (queries: string[]) =>
    types(await client.ask(OPTION.setMetaContext, contextQuery('a', queries)));
  t.same(await set(['qemu:dirty-bitmap:x', 'base:allocation']), [REPLY.metaContext, REPLY.ack]);
  t.same(await set(['base:']), [REPLY.ack]);
  t.same(await set([]), [REPLY.ack]);
  client.close();
});

t.test('meta contexts of unknown drives and with lengths that do not fit are refused', async (t) => {
  const { where } = await serve(t, [drive('a')]);
  const client = await NbdClient.connect(where);
  await client.ask(OPTION.structuredReply);
  const good = contextQuery('a', ['base:allocation']);
  const manyQueries = Buffer.from(good);
  manyQueries.writeUInt32BE(0xffffffff, 5);
  for (const option of [OPTION.listMetaContext, OPTION.setMetaContext]) {
    t.same(types(await client.ask(option, contextQuery('b', []))), [REPLY.unknown]);
    for (const data of [
      Buffer.alloc(0),
      good.subarray(0, -1),
      Buffer.concat([good, Buffer.alloc(4)]),
      manyQueries,
    ])
      t.same(types(await client.ask(option, data)), [REPLY.invalid]);
    t.same(types(await client.ask(option, contextQuery('a', new Array(257).fill('x')))), [REPLY.invalid]);
  }
  client.close();
});

async function blockStatusError(client: NbdClient): Promise<number> {
  return (await client.request({ type: COMMAND.blockStatus, lengthBytes: 4096 })).error;
}

t.test('a context that was chosen for one drive does not apply to another', async (t) => {
  const { where } = await serve(t, [drive('a'), drive('b')]);
  const client = await NbdClient.connect(where);
  await client.ask(OPTION.structuredReply);
  await client.ask(OPTION.setMetaContext, contextQuery('a', ['base:allocation']));
  await client.ask(OPTION.go, goData('b'));
  t.equal(await blockStatusError(client), NBD_ERROR.EINVAL);
  client.close();
});

t.test('a later choice of contexts replaces the earlier one, even if it is refused', async (t) => {
  const { where } = await serve(t, [drive('a')]);
  for (const data of [contextQuery('a', []), contextQuery('b', []), Buffer.alloc(3)]) {
    const client = await NbdClient.connect(where);
    await client.ask(OPTION.structuredReply);
    await client.ask(OPTION.setMetaContext, contextQuery('a', ['base:allocation']));
    await client.ask(OPTION.setMetaContext, data);
    await client.ask(OPTION.go, goData('a'));
    t.equal(await blockStatusError(client), NBD_ERROR.EINVAL);
    client.close();
  }
});

t.test('an option that announces too much data closes the connection before the data', async (t) => {
  const { where } = await serve(t, [drive('a')]);
  const client = await NbdClient.connect(where);
  const head = optionBytes(OPTION.list);
  head.writeUInt32BE(64 * 1024 + 1, 12);
  client.socket.write(head);
  t.equal((await client.rest()).length, 0);
});

t.test('a wrong option magic closes the connection', async (t) => {
  const { where } = await serve(t, [drive('a')]);
  const client = await NbdClient.connect(where);
  client.socket.write(Buffer.alloc(16, 'x'));
  t.equal((await client.rest()).length, 0);
});

t.test('a client that never chooses is closed after 1024 options plus 8 for each drive', async (t) => {
  const { where } = await serve(t, [drive('a')]);
  const client = await NbdClient.connect(where);
  client.socket.write(Buffer.concat(new Array(1033).fill(optionBytes(99))));
  t.equal((await client.rest()).length, 1032 * 20);
});

t.test('a whole session in one packet is served', async (t) => {
  const { where } = await serve(t, [drive('a')]);
  const client = await NbdClient.raw(where);
  await client.read(18);
  client.socket.cork();
  client.socket.write(Buffer.from([0, 0, 0, 3]));
  client.option(OPTION.go, goData('a'));
  client.send({ type: COMMAND.read, offset: 4096, lengthBytes: 4096 });
  client.socket.uncork();
  t.same([(await client.optionReply()).type, (await client.optionReply()).type], [REPLY.info, REPLY.ack]);
  t.ok((await client.answer()).data.equals(bytes.subarray(4096, 8192)));
  client.close();
});
