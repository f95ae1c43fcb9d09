/**
 * What one client may ask of the server, and all of them together. Every figure is a bound on something that
 * comes from outside: memory, time or a count.
 */
export interface NbdLimits {
  /** Clients of one listener at once; one more is closed at once, or whoever has not chosen an export for longest. */
  readonly connectionsMax: number;
  /** From connect, or from the last export that the client asked about, to the choice of one. */
  readonly handshakeTimeoutMs: number;
  /** Once the server wants the end: how long a client may take none of its last answers, or not close. */
  readonly lingerTimeoutMs: number;
  /** Requests of one client that wait for the drive at once. */
  readonly requestsMax: number;
  /** Bytes that such requests ask for together; a single longer request still runs, alone. */
  readonly requestedBytesMax: number;
  /** Answers that one client has not taken; above it, no more of its requests are served or read. */
  readonly unsentBytesMax: number;
  /** So many clients have the whole of the two bounds above; more share as much between them. */
  readonly fullShareConnections: number;
}

export const DEFAULT_LIMITS: NbdLimits = {
  connectionsMax: 1024,
  handshakeTimeoutMs: 10_000,
  lingerTimeoutMs: 5_000,
  requestsMax: 128,
  requestedBytesMax: 32 * 1024 * 1024,
  unsentBytesMax: 4 * 1024 * 1024,
  fullShareConnections: 32,
};

/** The part of `bytesMax` that one client has while `connections` are open. */
export function shareOf(bytesMax: number, connections: number, limits: NbdLimits): number {
  return (bytesMax * limits.fullShareConnections) / Math.max(connections, limits.fullShareConnections);
}
