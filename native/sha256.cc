// SHA-256 in one job on libuv's thread pool, of memory that stays where it is: WebCrypto's digest copies it first, which
// costs as much again.
#include <openssl/evp.h>

#include "addon.h"
#include "codec.h"
#include "pool-job.h"

namespace lazydisk {
namespace {

struct HashJob : PoolJob {
  Bytes bytes;
  Bytes digest;

  int Run() override {
    unsigned length = 0;
    // SAFETY: `digest` has room for kIdBytes, which is what SHA-256 gives.
    return EVP_Digest(bytes.data, bytes.length, digest.data, &length, EVP_sha256(), nullptr) == 1 &&
           length == kIdBytes;
  }
};

napi_value Sha256(napi_env env, napi_callback_info info) {
  size_t count = 3;
  napi_value args[3];
  if (napi_get_cb_info(env, info, &count, args, nullptr, nullptr) != napi_ok) return nullptr;
  Bytes bytes, digest;
  napi_valuetype callback_type = napi_undefined;
  if (count < 3 || !GetBytes(env, args[0], &bytes) || !GetBytes(env, args[1], &digest) ||
      digest.length != kIdBytes || napi_typeof(env, args[2], &callback_type) != napi_ok ||
      callback_type != napi_function) {
    return ThrowUsage(env, "sha256(bytes, digest: Uint8Array, callback: function)");
  }
  HashJob* job = new HashJob;
  job->bytes = bytes;
  job->digest = digest;
  PoolJob::Queue(env, "sha256", job, args, 3);
  return nullptr;
}

}  // namespace

void RegisterSha256(napi_env env, napi_value exports) { SetFunction(env, exports, "sha256", Sha256); }

}  // namespace lazydisk
