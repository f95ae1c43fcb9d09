/** Certificates for the TLS servers of tests, made by openssl. */
import { execFile } from 'node:child_process';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';

const exec = promisify(execFile);

const NEW_KEY = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];

/** Files in PEM. */
export interface CertificateFiles {
  readonly certificate: string;
  readonly key: string;
}

/** Creates `NAME.pem` in `dir`, signed by its own key `NAME.key`, with this common name and these `openssl req` flags. */
export async function selfSigned(
  dir: string,
  name: string,
  commonName: string,
  ...flags: string[]
): Promise<CertificateFiles> {
  const files = { certificate: join(dir, `${name}.pem`), key: join(dir, `${name}.key`) };
  const out = ['-keyout', files.key, '-out', files.certificate];
  await exec('openssl', ['req', '-x509', ...NEW_KEY, '-subj', `/CN=${commonName}`, ...flags, ...out]);
  return files;
}

/** Creates a certificate authority for a test, and a server certificate under it for 127.0.0.1; returns their files. */
export async function makeAuthority(dir: string): Promise<CertificateFiles & { readonly ca: string }> {
  const file = (name: string) => join(dir, name);
  const ca = await selfSigned(dir, 'ca', 'Tests', '-addext', 'basicConstraints=critical,CA:TRUE');
  const request = ['-subj', '/CN=127.0.0.1', '-keyout', file('server.key'), '-out', file('server.csr')];
  await exec('openssl', ['req', ...NEW_KEY, ...request]);
  await writeFile(file('extensions'), 'subjectAltName=IP:127.0.0.1\n');
  const signed = ['-in', file('server.csr'), '-CA', ca.certificate, '-CAkey', ca.key, '-CAcreateserial'];
  const out = ['-days', '2', '-extfile', file('extensions'), '-out', file('server.pem')];
  await exec('openssl', ['x509', '-req', ...signed, ...out]);
  return { ca: ca.certificate, certificate: file('server.pem'), key: file('server.key') };
}
