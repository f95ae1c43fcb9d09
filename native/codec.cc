// Opens a sealed chunk: SHA-256 against its id, AES-256-GCM, zstd, in one job on libuv's thread pool. The trick
// is reuse: cipher context, decompression context and payload scratch live as long as their pool thread, so a
// job allocates nothing of a chunk's size. OpenSSL and zstd are the ones that the node binary exports.
#include <openssl/crypto.h>
#include <openssl/evp.h>

#include <cstring>
#include <memory>

#include "addon.h"

// The part of zstd's stable interface that is used here. Node exports the symbols and carries no header.
extern "C" {
struct ZSTD_DCtx_s;
ZSTD_DCtx_s* ZSTD_createDCtx(void);
size_t ZSTD_freeDCtx(ZSTD_DCtx_s*);
size_t ZSTD_decompressDCtx(ZSTD_DCtx_s*, void* dst, size_t dst_capacity, const void* src, size_t src_size);
unsigned ZSTD_isError(size_t);
}

namespace lazydisk {
namespace {

constexpr size_t kIdBytes = 32;
constexpr size_t kKeyBytes = 32;
constexpr size_t kTagBytes = 16;
constexpr size_t kNonceBytes = 12;
// Room for one chunk and its codec byte; a longer payload is no chunk of ours, however it authenticates.
constexpr size_t kPayloadBytesMax = 1 + 512 * 1024;
constexpr uint8_t kCodecRaw = 0;
constexpr uint8_t kCodecZstd = 1;

enum Status : int { kOk = 0, kWrongId = 1, kWrongTag = 2, kBadPayload = 3 };

// What a pool thread keeps from job to job.
struct ThreadState {
  EVP_CIPHER_CTX* cipher = EVP_CIPHER_CTX_new();
  ZSTD_DCtx_s* zstd = ZSTD_createDCtx();
  std::unique_ptr<uint8_t[]> scratch{new uint8_t[kPayloadBytesMax]};

  ~ThreadState() {
    EVP_CIPHER_CTX_free(cipher);
    ZSTD_freeDCtx(zstd);
  }
};

struct Job {
  napi_async_work work = nullptr;
  // One array of (sealed, target, callback): keeps the memory below alive while the pool thread uses it.
  napi_ref held = nullptr;
  Bytes sealed;
  Bytes target;
  uint8_t id[kIdBytes];
  uint8_t key[kKeyBytes];
  int status = kBadPayload;
};

// `payload` gets sealed minus the tag. False if the tag is wrong.
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
  // Forgets the key schedule; the allocation stays for the next job.
  EVP_CIPHER_CTX_reset(cipher);
  return opened;
}

int Open(const Job& job) {
  thread_local ThreadState state;

  uint8_t digest[kIdBytes];
  unsigned digest_length = 0;
  if (EVP_Digest(job.sealed.data, job.sealed.length, digest, &digest_length, EVP_sha256(), nullptr) != 1 ||
      digest_length != kIdBytes || memcmp(digest, job.id, kIdBytes) != 0) {
    return kWrongId;
  }

  // SAFETY: the scratch holds kPayloadBytesMax bytes, and a payload is never empty from here on.
  if (job.sealed.length <= kTagBytes || job.sealed.length - kTagBytes > kPayloadBytesMax) return kBadPayload;
  const size_t payload_length = job.sealed.length - kTagBytes;
  uint8_t* payload = state.scratch.get();
  if (!state.cipher || !Decrypt(state.cipher, job.key, job.sealed, payload)) return kWrongTag;

  const uint8_t* body = payload + 1;
  const size_t body_length = payload_length - 1;
  if (payload[0] == kCodecRaw) {
    if (body_length != job.target.length) return kBadPayload;
    memcpy(job.target.data, body, body_length);
    return kOk;
  }
  if (payload[0] != kCodecZstd || !state.zstd) return kBadPayload;
  const size_t decoded =
      ZSTD_decompressDCtx(state.zstd, job.target.data, job.target.length, body, body_length);
  return !ZSTD_isError(decoded) && decoded == job.target.length ? kOk : kBadPayload;
}

void Execute(napi_env, void* data) {
  Job* job = static_cast<Job*>(data);
  job->status = Open(*job);
}

void Destroy(napi_env env, Job* job) {
  OPENSSL_cleanse(job->key, kKeyBytes);
  if (job->held) napi_delete_reference(env, job->held);
  if (job->work) napi_delete_async_work(env, job->work);
  delete job;
}

void Complete(napi_env env, napi_status work_status, void* data) {
  Job* job = static_cast<Job*>(data);
  const int status = job->status;
  napi_value held, callback, argument, global;
  const bool call = work_status == napi_ok && napi_get_reference_value(env, job->held, &held) == napi_ok &&
                    napi_get_element(env, held, 2, &callback) == napi_ok &&
                    napi_create_int32(env, status, &argument) == napi_ok &&
                    napi_get_global(env, &global) == napi_ok;
  Destroy(env, job);
  // An exception of the callback stays pending: Node reports it as uncaught.
  if (call) napi_call_function(env, global, callback, 1, &argument, nullptr);
}

napi_value OpenChunk(napi_env env, napi_callback_info info) {
  size_t count = 5;
  napi_value args[5];
  if (napi_get_cb_info(env, info, &count, args, nullptr, nullptr) != napi_ok) return nullptr;
  Bytes sealed, id, key, target;
  napi_valuetype callback_type = napi_undefined;
  if (count < 5 || !GetBytes(env, args[0], &sealed) || !GetBytes(env, args[1], &id) ||
      !GetBytes(env, args[2], &key) || !GetBytes(env, args[3], &target) ||
      napi_typeof(env, args[4], &callback_type) != napi_ok || callback_type != napi_function) {
    return ThrowUsage(env, "openChunk(sealed, id, key, target: Uint8Array, callback: function)");
  }
  if (id.length != kIdBytes || key.length != kKeyBytes) {
    return ThrowUsage(env, "openChunk: id and key are 32 bytes each");
  }

  Job* job = new Job;
  job->sealed = sealed;
  job->target = target;
  memcpy(job->id, id.data, kIdBytes);
  memcpy(job->key, key.data, kKeyBytes);
  napi_value held, name;
  if (napi_create_array_with_length(env, 3, &held) != napi_ok ||
      napi_set_element(env, held, 0, args[0]) != napi_ok || napi_set_element(env, held, 1, args[3]) != napi_ok ||
      napi_set_element(env, held, 2, args[4]) != napi_ok ||
      napi_create_reference(env, held, 1, &job->held) != napi_ok ||
      napi_create_string_utf8(env, "lazydisk:openChunk", NAPI_AUTO_LENGTH, &name) != napi_ok ||
      napi_create_async_work(env, nullptr, name, Execute, Complete, job, &job->work) != napi_ok ||
      napi_queue_async_work(env, job->work) != napi_ok) {
    Destroy(env, job);
    napi_throw_error(env, nullptr, "openChunk: cannot queue the job");
  }
  return nullptr;
}

}  // namespace

void RegisterCodec(napi_env env, napi_value exports) { SetFunction(env, exports, "openChunk", OpenChunk); }

}  // namespace lazydisk
