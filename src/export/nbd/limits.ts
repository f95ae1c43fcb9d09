/**
 * What one client may ask of the server, and all clients together. Every limit bounds memory, time or a count that a
 * client controls.
 */
export interface NbdLimits {
  /**
   * Clients of one listener at once; a new one replaces the oldest that has not chosen an export, or is closed at once.
   */
  readonly connectionsMax: number;
  /** The time from connecting, or from the last export that the client asked about, to its choice of an export. */
  readonly handshakeTimeoutMs: number;
  /** Once the server wants to close: how long a client may take none of its last answers, or not close. */
  readonly lingerTimeoutMs: number;
  /** Requests of one client that wait for the drive at once. */
  readonly requestsMax: number;
  /** The bytes that such requests ask for together; a single longer request still runs, alone. */
  readonly requestedBytesMax: number;
  /** Bytes of answers that one client has not taken; above it, no more of its requests are served or read. */
  readonly unsentBytesMax: number;
  /** Up to this many clients get the two bounds above in full; more clients share the same total. */
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

/** The part of `bytesMax` that one client gets while `connections` are open. */
export function shareOf(bytesMax: number, connections: number, limits: NbdLimits): number {
  return (bytesMax * limits.fullShareConnections) / Math.max(connections, limits.fullShareConnections);
}
