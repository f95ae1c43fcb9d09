// Opens a sealed chunk: SHA-256 against its id, AES-256-GCM, zstd, in one job on a thread that only computes. Cipher
// context, decompression context and payload scratch live as long as their thread, so a job allocates nothing of a
// chunk's size. OpenSSL and zstd are those that the node binary exports.
#include <openssl/crypto.h>
#include <openssl/evp.h>

#include <cstring>
#include <memory>

#include "addon.h"
#include "codec.h"
#include "handle.h"
#include "compute-job.h"

// The part of zstd's stable interface that is used here. Node exports the symbols but ships no header.
extern "C" {
struct ZSTD_DCtx_s;
ZSTD_DCtx_s* ZSTD_createDCtx(void);
size_t ZSTD_freeDCtx(ZSTD_DCtx_s*);
size_t ZSTD_decompressDCtx(ZSTD_DCtx_s*, void* dst, size_t dst_capacity, const void* src, size_t src_size);
unsigned ZSTD_isError(size_t);
}

namespace lazydisk {
namespace {

// Room for one chunk and its codec byte; a longer payload is not a valid chunk, even if it authenticates.
constexpr size_t kPayloadBytesMax = 1 + kChunkBytesMax;

enum Status : int { kOk = 0, kWrongId = 1, kWrongTag = 2, kBadPayload = 3 };

// What a thread keeps between jobs.
struct ThreadState {
  EVP_CIPHER_CTX* cipher = EVP_CIPHER_CTX_new();
  ZSTD_DCtx_s* zstd = ZSTD_createDCtx();
  std::unique_ptr<uint8_t[]> scratch{new uint8_t[kPayloadBytesMax]};

  ~ThreadState() {
    EVP_CIPHER_CTX_free(cipher);
    ZSTD_freeDCtx(zstd);
  }
};

struct OpenJob : ComputeJob {
  Bytes sealed;
  Bytes target;
  uint8_t id[kIdBytes];
  uint8_t key[kKeyBytes];

  ~OpenJob() override { OPENSSL_cleanse(key, kKeyBytes); }
  int Run() override;
};

// Writes `sealed` minus the tag to `payload`, decrypted. False if the tag is wrong.
bool Decrypt(EVP_CIPHER_CTX* cipher, const uint8_t* key, const Bytes& sealed, uint8_t* payload) {
  static const uint8_t nonce[kNonceBytes] = {};
  const size_t length = sealed.length - kTagBytes;
  int written = 0;
  int final_written = 0;
  const bool opened =
      EVP_DecryptInit_ex(cipher, EVP_aes_256_gcm(), nullptr, key, nonce) == 1 &&
      EVP_DecryptUpdate(cipher, payload, &written, sealed.data, static_cast<int>(length)) == 1 &&
      static_cast<size_t>(written) == length &&
      EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_GCM_SET_TAG, kTagBytes, sealed.data + length) == 1 &&
      EVP_DecryptFinal_ex(cipher, payload + length, &final_written) == 1;
  // Erases the key schedule; the allocation stays for the next job.
  EVP_CIPHER_CTX_reset(cipher);
  return opened;
}

int OpenJob::Run() {
  thread_local ThreadState state;

  uint8_t digest[kIdBytes];
  unsigned digest_length = 0;
  if (EVP_Digest(sealed.data, sealed.length, digest, &digest_length, EVP_sha256(), nullptr) != 1 ||
      digest_length != kIdBytes || memcmp(digest, id, kIdBytes) != 0) {
    return kWrongId;
  }

  // SAFETY: the scratch holds kPayloadBytesMax bytes, and a payload is never empty from here on.
  if (sealed.length <= kTagBytes || sealed.length - kTagBytes > kPayloadBytesMax) return kBadPayload;
  const size_t payload_length = sealed.length - kTagBytes;
  uint8_t* payload = state.scratch.get();
  if (!state.cipher || !Decrypt(state.cipher, key, sealed, payload)) return kWrongTag;

  const uint8_t* body = payload + 1;
  const size_t body_length = payload_length - 1;
  if (payload[0] == kCodecRaw) {
    if (body_length != target.length) return kBadPayload;
    memcpy(target.data, body, body_length);
    return kOk;
  }
  if (payload[0] != kCodecZstd || !state.zstd) return kBadPayload;
  const size_t decoded =
      ZSTD_decompressDCtx(state.zstd, target.data, target.length, body, body_length);
  return !ZSTD_isError(decoded) && decoded == target.length ? kOk : kBadPayload;
}

napi_value OpenChunk(napi_env env, napi_callback_info info) {
  const Arguments<5> args(env, info);
  Bytes sealed, id, key, target;
  if (!args.ok() || !args.GetBytes(0, &sealed) || !args.GetBytes(1, &id) || !args.GetBytes(2, &key) ||
      !args.GetBytes(3, &target) || !args.IsFunction(4)) {
    return ThrowUsage(env, "openChunk(sealed, id, key, target: Uint8Array, callback: function)");
  }
  if (id.length != kIdBytes || key.length != kKeyBytes) {
    return ThrowUsage(env, "openChunk: id and key are 32 bytes each");
  }

  OpenJob* job = new OpenJob;
  job->sealed = sealed;
  job->target = target;
  memcpy(job->id, id.data, kIdBytes);
  memcpy(job->key, key.data, kKeyBytes);
  const napi_value held[] = {args[0], args[3], args[4]};
  ComputeJob::Queue(env, "openChunk", job, held, 3);
  return nullptr;
}

}  // namespace

void RegisterOpenChunk(napi_env env, napi_value exports) { SetFunction(env, exports, "openChunk", OpenChunk); }

}  // namespace lazydisk
