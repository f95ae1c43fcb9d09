/**
 * Whether a signal that waits for a thread will kill it. The kernel says INTERRUPT for every signal that meets a thread
 * in a read, also for a timer's, and not which one. /proc knows: what is pending, neither blocked nor ignored nor
 * caught, and kills whoever does nothing about it. Sources: proc_pid_status(5), signal(7).
 */
import { readFileSync } from 'node:fs';

const bit = (signal: number) => 1n << BigInt(signal - 1);
const SIGKILL = bit(9);
/** CHLD, CONT, STOP, TSTP, TTIN, TTOU, URG, WINCH: by default they are ignored, or stop. */
const HARMLESS = [17, 18, 19, 20, 21, 22, 23, 28].reduce((set, signal) => set | bit(signal), 0n);

/** False also where it cannot be told: a thread of another PID namespace (`pid` 0) or one that /proc hides. */
export function isDying(pid: number): boolean {
  if (pid === 0) return false;
  try {
    return hasDeadlySignal(readFileSync(`/proc/${pid}/status`, 'latin1'));
  } catch {
    return false;
  }
}

/** `status` is the text of a /proc/PID/status. */
export function hasDeadlySignal(status: string): boolean {
  const signals = (name: string) =>
    BigInt(`0x${new RegExp(`^${name}:\\s*([0-9a-f]+)$`, 'm').exec(status)?.[1] ?? 0}`);
  const pending = signals('SigPnd') | signals('ShdPnd');
  // A thread that dies for another reason has it as well.
  if ((pending & SIGKILL) !== 0n) return true;
  return (pending & ~(signals('SigBlk') | signals('SigIgn') | signals('SigCgt') | HARMLESS)) !== 0n;
}
