/**
 * Specs of the keys of a host: `file:PATH` or just the path of a key file, or `awskms:ARN` for the keys in the store
 * that this KMS key, named by its own ARN or an alias's, can decrypt.
 */
import { LazydiskError } from '../errors.ts';
import { KMS_ALIAS_ARN, KMS_KEY_ARN } from '../format/wrapped-key.ts';

export type KeySpec =
  | { readonly kind: 'file'; readonly path: string }
  | { readonly kind: 'awskms'; readonly arn: string };

const FILE = 'file:';
const AWS_KMS = 'awskms:';

/** Parses a spec. Throws USAGE. */
export function parseKeySpec(text: string): KeySpec {
  if (text.startsWith(AWS_KMS)) {
    const arn = text.slice(AWS_KMS.length);
    if (!KMS_KEY_ARN.test(arn) && !KMS_ALIAS_ARN.test(arn)) {
      const want = 'arn:aws:kms:REGION:ACCOUNT:key/ID or arn:aws:kms:REGION:ACCOUNT:alias/NAME';
      throw new LazydiskError(
        'USAGE',
        `key ${JSON.stringify(text.slice(0, 300))}: want ${AWS_KMS} and ${want}`,
      );
    }
    return { kind: 'awskms', arn };
  }
  const path = text.startsWith(FILE) ? text.slice(FILE.length) : text;
  // `file://key` is ambiguous: a host named key in a URL, or /key on a disk.
  if (path === '' || /^\/\/[^/]/.test(path))
    throw new LazydiskError('USAGE', `key ${JSON.stringify(text.slice(0, 300))}: want ${FILE}PATH`);
  return { kind: 'file', path };
}

/** The text that `parseKeySpec` parses. */
export function keySpecText(spec: KeySpec): string {
  return spec.kind === 'file' ? `${FILE}${spec.path}` : `${AWS_KMS}${spec.arn}`;
}
