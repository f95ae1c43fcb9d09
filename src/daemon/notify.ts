/**
 * Notifies systemd (sd_notify(3)) of READY=1, STOPPING=1, STATUS=, and WATCHDOG=1 if the unit asks for it: one datagram
 * each, sent by this process itself. Outside of systemd (no NOTIFY_SOCKET) all of this does nothing.
 *
 * The watchdog is fed from the event loop, so systemd restarts a daemon whose loop hangs.
 */
import { getSystemErrorMessage } from 'node:util';
import { datagramSend } from '../../native/index.ts';
import type { Logger } from './log.ts';

export class Notifier {
  readonly #log: Logger;
  readonly #env: NodeJS.ProcessEnv;
  #watchdog: NodeJS.Timeout | undefined;

  constructor(log: Logger, env: NodeJS.ProcessEnv = process.env) {
    this.#log = log;
    this.#env = env;
  }

  /** Tells systemd that the daemon is serving, and starts feeding the watchdog if there is one. */
  ready(status: string): void {
    this.#send('READY=1', `STATUS=${oneLine(status)}`);
    const watchdogMs = Number(this.#env.WATCHDOG_USEC) / 1000;
    const ours = !this.#env.WATCHDOG_PID || Number(this.#env.WATCHDOG_PID) === process.pid;
    if (!ours || !(watchdogMs > 0)) return;
    // sd_watchdog_enabled(3) advises half of the limit; unref, because it must not keep the process alive.
    this.#watchdog = setInterval(() => this.#send('WATCHDOG=1'), watchdogMs / 2);
    this.#watchdog.unref();
  }

  stopping(): void {
    clearInterval(this.#watchdog);
    this.#send('STOPPING=1');
  }

  #send(...assignments: string[]): void {
    const path = this.#env.NOTIFY_SOCKET;
    if (!path) return;
    // systemd writes an address in the abstract namespace with a leading @.
    const address = Buffer.from(path.replace(/^@/, '\0'));
    const errno = datagramSend(address, Buffer.from(assignments.join('\n')));
    if (errno === 0) return;
    this.#log.warn({ why: getSystemErrorMessage(-errno), assignments }, 'systemd could not be notified');
  }
}

function oneLine(text: string): string {
  return text.replace(/\s+/g, ' ');
}
