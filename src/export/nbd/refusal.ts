/** Which requests are refused before anything is read, and how. Source: doc/proto.md, "Request types". */
import type { Session } from './handshake.ts';
import { BLOCK_SIZE, COMMAND, COMMAND_FLAG, NBD_ERROR, type Request } from './protocol.ts';

export interface Refusal {
  /** An NBD_ERROR. */
  readonly error: number;
  /** For structured replies, which carry a text. */
  readonly text: string;
}

const invalid = (text: string): Refusal => ({ error: NBD_ERROR.EINVAL, text });

/** Undefined if the request is acceptable. */
export function refusalOf(request: Request, session: Session): Refusal | undefined {
  const { type, flags, offset, lengthBytes } = request;
  const isInside = lengthBytes > 0 && offset + lengthBytes <= session.device.sizeBytes;
  switch (type) {
    case COMMAND.read:
      if ((flags & ~COMMAND_FLAG.df) !== 0) return invalid('unknown flags');
      if ((flags & COMMAND_FLAG.df) !== 0 && !session.structured)
        return invalid('DF needs structured replies');
      if (lengthBytes > BLOCK_SIZE.maximum) return invalid(`at most ${BLOCK_SIZE.maximum} bytes at once`);
      return isInside ? undefined : invalid('outside the device');
    case COMMAND.blockStatus:
      if ((flags & ~COMMAND_FLAG.reqOne) !== 0) return invalid('unknown flags');
      if (!session.allocation) return invalid('no metadata context was chosen');
      return isInside ? undefined : invalid('outside the device');
    case COMMAND.cache:
      if (flags !== 0) return invalid('unknown flags');
      return isInside ? undefined : invalid('outside the device');
    case COMMAND.flush:
      return flags === 0 && offset === 0 && lengthBytes === 0
        ? undefined
        : invalid('flush takes no flags and no range');
    case COMMAND.write:
    case COMMAND.trim:
    case COMMAND.writeZeroes:
      return session.device.readOnly
        ? { error: NBD_ERROR.EPERM, text: 'the export is read-only' }
        : { error: NBD_ERROR.ENOTSUP, text: 'writing is not supported' };
    default:
      return invalid('unknown command');
  }
}
