// Seals a one-time code as a producer in Node, without any package. It prints the body to publish:
//
//   otp-stream sealing public > public.json          (or fetch it from a worker: GET /jwks.json)
//   node examples/sealed_producer.mjs public.json user@example.com 123456 login-42
//
// Publish it as any job: persistent, through the default exchange, to service_send_otp.

import { createCipheriv, createHash, createPublicKey, diffieHellman, generateKeyPairSync, randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const base64url = (content) => Buffer.from(content).toString("base64url");
const length = (size) => { const bytes = Buffer.alloc(4); bytes.writeUInt32BE(size); return bytes; };

/** Return the job with `otpSealed` in place of `otp`. `jwk` is a public key (P-256, X25519) or a shared one (oct). */
export function seal({ otp, ...job }, jwk) {
  const header = { alg: jwk.kty === "oct" ? "dir" : "ECDH-ES", enc: "A256GCM", kid: jwk.kid, email: job.email };
  header.tenant = job.metadata?.tenant ?? ""; // so that no other tenant's relay gets the code
  if (job.jobId !== undefined) header.jobId = job.jobId;
  let key;
  if (jwk.kty === "oct") {
    key = Buffer.from(jwk.k, "base64url");
  } else {
    const pair = jwk.kty === "OKP" ? generateKeyPairSync("x25519") : generateKeyPairSync("ec", { namedCurve: "P-256" });
    const publicKey = createPublicKey({ key: jwk, format: "jwk" });
    const shared = diffieHellman({ privateKey: pair.privateKey, publicKey });
    header.epk = pair.publicKey.export({ format: "jwk" });
    // Concat KDF (RFC 7518 §4.6.2), with empty apu and apv
    const info = [length(header.enc.length), header.enc, length(0), length(0), length(256)];
    const hash = createHash("sha256").update(length(1)).update(shared);
    for (const part of info) hash.update(part);
    key = hash.digest();
  }
  const protectedHeader = base64url(JSON.stringify(header));
  const iv = randomBytes(12);
  const cipher = createCipheriv("aes-256-gcm", key, iv).setAAD(Buffer.from(protectedHeader));
  const ciphertext = Buffer.concat([cipher.update(otp, "utf8"), cipher.final()]);
  const parts = [iv, ciphertext, cipher.getAuthTag()].map(base64url);
  return { ...job, otpSealed: [protectedHeader, "", ...parts].join(".") };
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const [file, email, otp, jobId] = process.argv.slice(2);
  const found = JSON.parse(readFileSync(file, "utf8"));
  const job = { email, otp, jobId, timestamp: Date.now() };
  console.log(JSON.stringify(seal(job, found.keys ? found.keys[0] : found)));
}
