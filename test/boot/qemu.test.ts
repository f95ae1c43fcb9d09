/** A microVM whose QEMU does not start. */
import { setImmediate as tick } from 'node:timers/promises';
import t from 'tap';
import { runQemu } from '../../src/boot/qemu.ts';

const skip = process.arch !== 'x64' && 'microVMs run on x64 only';

t.test(
  'a QEMU that is not installed is one error of the call, and the process goes on',
  { skip },
  async (t) => {
    const unhandled: unknown[] = [];
    const note = (error: unknown) => unhandled.push(error);
    process.on('unhandledRejection', note);
    const path = process.env.PATH;
    t.teardown(() => {
      process.env.PATH = path;
      process.off('unhandledRejection', note);
    });
    process.env.PATH = t.testdir();
    const guest = { accel: 'tcg', kernel: 'kernel', initramfs: 'initramfs', memoryMb: 64 } as const;
    await t.rejects(runQemu({ ...guest, timeoutMs: 60_000, onLine: () => false }), {
      code: 'UNAVAILABLE',
      message: /^qemu-system-x86_64 is missing: /,
    });
    // Node reports an unhandled rejection before the loop's next turn.
    await tick();
    t.same(unhandled, []);
  },
);
