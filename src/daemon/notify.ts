/**
 * What systemd is told (sd_notify(3)): READY=1, STOPPING=1, STATUS=, and WATCHDOG=1 if the unit asks for it. The
 * protocol is a datagram on a Unix socket, which Node cannot send, so systemd's own `systemd-notify` sends it; the
 * unit therefore has `NotifyAccess=all`. Outside of systemd (no NOTIFY_SOCKET) all of this does nothing.
 *
 * The watchdog is fed from the event loop, so a loop that hangs is a daemon that systemd restarts.
 */
import { execFile } from 'node:child_process';
import type { Logger } from './log.ts';

const SEND_TIMEOUT_MS = 5_000;

export class Notifier {
  readonly #log: Logger;
  readonly #env: NodeJS.ProcessEnv;
  #watchdog: NodeJS.Timeout | undefined;

  constructor(log: Logger, env: NodeJS.ProcessEnv = process.env) {
    this.#log = log;
    this.#env = env;
  }

  /** Says that the daemon serves, and starts feeding the watchdog if there is one. */
  async ready(status: string): Promise<void> {
    await this.#send('READY=1', `STATUS=${oneLine(status)}`);
    const watchdogMs = Number(this.#env.WATCHDOG_USEC) / 1000;
    const ours = !this.#env.WATCHDOG_PID || Number(this.#env.WATCHDOG_PID) === process.pid;
    if (!ours || !(watchdogMs > 0)) return;
    // Half of the limit is what sd_watchdog_enabled(3) advises; unref, for it must not keep the process alive.
    this.#watchdog = setInterval(() => void this.#send('WATCHDOG=1'), watchdogMs / 2);
    this.#watchdog.unref();
  }

  async stopping(): Promise<void> {
    clearInterval(this.#watchdog);
    await this.#send('STOPPING=1');
  }

  #send(...assignments: string[]): Promise<void> {
    if (!this.#env.NOTIFY_SOCKET) return Promise.resolve();
    return new Promise((resolve) => {
      execFile('systemd-notify', assignments, { env: this.#env, timeout: SEND_TIMEOUT_MS }, (error) => {
        if (error) this.#log.warn({ error, assignments }, 'systemd could not be notified');
        resolve();
      });
    });
  }
}

function oneLine(text: string): string {
  return text.replace(/\s+/g, ' ');
}
