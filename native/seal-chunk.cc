// Seals a chunk: zstd, HMAC for the key, AES-256-GCM, SHA-256 for the id, in one job on libuv's thread pool. As in
// opening, what a job needs lives as long as its pool thread, so a build allocates nothing per chunk. The reference in
// TypeScript is encodeChunk of src/format/chunk-codec.ts.
#include <openssl/evp.h>
#include <openssl/hmac.h>

#include <cstring>
#include <memory>

#include "addon.h"
#include "codec.h"
#include "handle.h"
#include "pool-job.h"

// The part of zstd's stable interface that is used here. Node exports the symbols but ships no header.
extern "C" {
struct ZSTD_CCtx_s;
ZSTD_CCtx_s* ZSTD_createCCtx(void);
size_t ZSTD_freeCCtx(ZSTD_CCtx_s*);
size_t ZSTD_CCtx_setParameter(ZSTD_CCtx_s*, int parameter, int value);
size_t ZSTD_compress2(ZSTD_CCtx_s*, void* dst, size_t dst_capacity, const void* src, size_t src_size);
size_t ZSTD_compressBound(size_t src_size);
unsigned ZSTD_isError(size_t);
}

namespace lazydisk {
namespace {

// ZSTD_c_compressionLevel.
constexpr int kLevelParameter = 100;
constexpr int kLevel = 3;

// What a pool thread keeps between jobs.
struct ThreadState {
  EVP_CIPHER_CTX* cipher = EVP_CIPHER_CTX_new();
  ZSTD_CCtx_s* zstd = ZSTD_createCCtx();
  const size_t body_bytes_max = ZSTD_compressBound(kChunkBytesMax);
  std::unique_ptr<uint8_t[]> payload{new uint8_t[1 + body_bytes_max]};

  ThreadState() {
    if (zstd) ZSTD_CCtx_setParameter(zstd, kLevelParameter, kLevel);
  }

  ~ThreadState() {
    EVP_CIPHER_CTX_free(cipher);
    ZSTD_freeCCtx(zstd);
  }
};

struct SealJob : PoolJob {
  Bytes plain;
  Bytes salt;
  Bytes sealed;
  Bytes id;
  Bytes key;

  int Run() override;
};

// Writes the payload's ciphertext and the tag to `sealed`.
bool Encrypt(EVP_CIPHER_CTX* cipher, const uint8_t* key, const uint8_t* payload, size_t length, uint8_t* sealed) {
  static const uint8_t nonce[kNonceBytes] = {};
  int written = 0;
  int final_written = 0;
  const bool done =
      EVP_EncryptInit_ex(cipher, EVP_aes_256_gcm(), nullptr, key, nonce) == 1 &&
      EVP_EncryptUpdate(cipher, sealed, &written, payload, static_cast<int>(length)) == 1 &&
      static_cast<size_t>(written) == length && EVP_EncryptFinal_ex(cipher, sealed + length, &final_written) == 1 &&
      EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_GCM_GET_TAG, kTagBytes, sealed + length) == 1;
  // Erases the key schedule; the allocation stays for the next job.
  EVP_CIPHER_CTX_reset(cipher);
  return done;
}

// Returns the length of the sealed bytes, or 0.
int SealJob::Run() {
  thread_local ThreadState state;
  if (!state.cipher || !state.zstd) return 0;

  uint8_t* payload = state.payload.get();
  // SAFETY: the payload has room for the compressed form of any chunk of at most kChunkBytesMax, plus one byte.
  size_t body_length =
      ZSTD_compress2(state.zstd, payload + 1, state.body_bytes_max, plain.data, plain.length);
  if (ZSTD_isError(body_length)) return 0;
  payload[0] = kCodecZstd;
  if (body_length > plain.length - plain.length / 16) {
    payload[0] = kCodecRaw;
    memcpy(payload + 1, plain.data, plain.length);
    body_length = plain.length;
  }

  // SAFETY: a payload is at most one byte longer than the chunk, so `sealed` has room for it and the tag.
  const size_t payload_length = 1 + body_length;
  const size_t sealed_length = payload_length + kTagBytes;
  unsigned key_length = 0;
  unsigned id_length = 0;
  const bool done =
      HMAC(EVP_sha256(), salt.data, static_cast<int>(salt.length), payload, payload_length, key.data, &key_length) &&
      key_length == kKeyBytes && Encrypt(state.cipher, key.data, payload, payload_length, sealed.data) &&
      EVP_Digest(sealed.data, sealed_length, id.data, &id_length, EVP_sha256(), nullptr) == 1 &&
      id_length == kIdBytes;
  return done ? static_cast<int>(sealed_length) : 0;
}

napi_value SealChunk(napi_env env, napi_callback_info info) {
  const Arguments<6> args(env, info);
  Bytes plain, salt, sealed, id, key;
  if (!args.ok() || !args.GetBytes(0, &plain) || !args.GetBytes(1, &salt) || !args.GetBytes(2, &sealed) ||
      !args.GetBytes(3, &id) || !args.GetBytes(4, &key) || !args.IsFunction(5)) {
    return ThrowUsage(env, "sealChunk(plain, salt, sealed, id, key: Uint8Array, callback: function)");
  }
  if (plain.length == 0 || plain.length > kChunkBytesMax || salt.length == 0 || salt.length > kChunkBytesMax) {
    return ThrowUsage(env, "sealChunk: plain and salt are 1 byte to 512 KiB each");
  }
  if (sealed.length < 1 + plain.length + kTagBytes || id.length != kIdBytes || key.length != kKeyBytes) {
    return ThrowUsage(env, "sealChunk: sealed has room for plain and 17 bytes, id and key are 32 bytes each");
  }
  SealJob* job = new SealJob;
  job->plain = plain;
  job->salt = salt;
  job->sealed = sealed;
  job->id = id;
  job->key = key;
  PoolJob::Queue(env, "sealChunk", job, args.all(), 6);
  return nullptr;
}

}  // namespace

void RegisterSealChunk(napi_env env, napi_value exports) { SetFunction(env, exports, "sealChunk", SealChunk); }

}  // namespace lazydisk
