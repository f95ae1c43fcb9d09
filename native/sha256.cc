// SHA-256 in one job on libuv's thread pool, without a copy: WebCrypto's digest first copies the memory, which doubles
// the cost.
#include <openssl/evp.h>

#include "addon.h"
#include "codec.h"
#include "handle.h"
#include "pool-job.h"

namespace lazydisk {
namespace {

struct HashJob : PoolJob {
  Bytes bytes;
  Bytes digest;

  int Run() override {
    unsigned length = 0;
    // SAFETY: `digest` has room for kIdBytes, the length of a SHA-256.
    return EVP_Digest(bytes.data, bytes.length, digest.data, &length, EVP_sha256(), nullptr) == 1 &&
           length == kIdBytes;
  }
};

napi_value Sha256(napi_env env, napi_callback_info info) {
  const Arguments<3> args(env, info);
  Bytes bytes, digest;
  if (!args.ok() || !args.GetBytes(0, &bytes) || !args.GetBytes(1, &digest) || digest.length != kIdBytes ||
      !args.IsFunction(2)) {
    return ThrowUsage(env, "sha256(bytes, digest: Uint8Array, callback: function)");
  }
  HashJob* job = new HashJob;
  job->bytes = bytes;
  job->digest = digest;
  PoolJob::Queue(env, "sha256", job, args.all(), 3);
  return nullptr;
}

}  // namespace

void RegisterSha256(napi_env env, napi_value exports) { SetFunction(env, exports, "sha256", Sha256); }

}  // namespace lazydisk
