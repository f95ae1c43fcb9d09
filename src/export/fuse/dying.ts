/**
 * Whether a signal that is pending for a thread will kill it. The kernel sends INTERRUPT for every signal to a thread
 * in a read, even for a timer's, and does not say which one. /proc shows it: the thread dies if a pending signal is
 * neither blocked, ignored nor caught and its default action is to terminate. Sources: proc_pid_status(5), signal(7).
 */
import { readFileSync } from 'node:fs';

const bit = (signal: number) => 1n << BigInt(signal - 1);
const SIGKILL = bit(9);
/** CHLD, CONT, STOP, TSTP, TTIN, TTOU, URG, WINCH: by default they are ignored, stop or continue. */
const HARMLESS = [17, 18, 19, 20, 21, 22, 23, 28].reduce((set, signal) => set | bit(signal), 0n);

/** Also false where it cannot be determined: a thread of another PID namespace (`pid` 0), or one that /proc hides. */
export function isDying(pid: number): boolean {
  if (pid === 0) return false;
  try {
    return hasDeadlySignal(readFileSync(`/proc/${pid}/status`, 'latin1'));
  } catch {
    return false;
  }
}

/** `status` is the content of /proc/PID/status. */
export function hasDeadlySignal(status: string): boolean {
  const signals = (name: string) =>
    BigInt(`0x${new RegExp(`^${name}:\\s*([0-9a-f]+)$`, 'm').exec(status)?.[1] ?? 0}`);
  const pending = signals('SigPnd') | signals('ShdPnd');
  // A thread that dies for another reason also has SIGKILL pending.
  if ((pending & SIGKILL) !== 0n) return true;
  return (pending & ~(signals('SigBlk') | signals('SigIgn') | signals('SigCgt') | HARMLESS)) !== 0n;
}
