// Decodes a layer's blob and hashes both the blob and the decoded bytes, in jobs on libuv's thread pool. The caller's
// thread has the archive to read, and reuses a few buffers, where zlib's streams allocate one for each piece of output.
// Only one job at a time works on a decoder.
#include <openssl/evp.h>

#include <atomic>
#include <cstring>
#include <new>

#include "addon.h"
#include "handle.h"
#include "pool-job.h"

// The parts of the stable interfaces of zlib and zstd that are used here. Node exports the symbols but ships no
// headers.
extern "C" {
struct z_stream_s {
  const uint8_t* next_in;
  unsigned avail_in;
  unsigned long total_in;
  uint8_t* next_out;
  unsigned avail_out;
  unsigned long total_out;
  const char* msg;
  void* state;
  void* (*zalloc)(void*, unsigned, unsigned);
  void (*zfree)(void*, void*);
  void* opaque;
  int data_type;
  unsigned long adler;
  unsigned long reserved;
};
int inflateInit2_(z_stream_s*, int window_bits, const char* version, int stream_size);
int inflate(z_stream_s*, int flush);
int inflateReset(z_stream_s*);
int inflateEnd(z_stream_s*);
const char* zlibVersion(void);

struct ZSTD_DCtx_s;
struct ZSTD_inBuffer {
  const void* src;
  size_t size;
  size_t pos;
};
struct ZSTD_outBuffer {
  void* dst;
  size_t size;
  size_t pos;
};
ZSTD_DCtx_s* ZSTD_createDCtx(void);
size_t ZSTD_freeDCtx(ZSTD_DCtx_s*);
size_t ZSTD_decompressStream(ZSTD_DCtx_s*, ZSTD_outBuffer*, ZSTD_inBuffer*);
unsigned ZSTD_isError(size_t);
}

namespace lazydisk {
namespace {

// As in native.d.ts.
enum Compression : uint32_t { kNone = 0, kGzip = 1, kZstd = 2 };
enum Status : int { kDecoded = 0, kCorrupt = 1, kNoMemory = 2 };

// Results of inflate, and its set-up for gzip only with the largest window.
constexpr int kZlibOk = 0;
constexpr int kZlibStreamEnd = 1;
constexpr int kZlibMemory = -4;
constexpr int kZlibBuffer = -5;
constexpr int kGzipWindowBits = 15 + 16;

constexpr size_t kBytesMax = 16 * 1024 * 1024;
constexpr size_t kCountsBytes = 8;

struct Decoder {
  Compression compression;
  EVP_MD_CTX* blob_hash = nullptr;
  EVP_MD_CTX* tar_hash = nullptr;
  z_stream_s zlib = {};
  bool zlib_ready = false;
  ZSTD_DCtx_s* zstd = nullptr;
  // Between members or frames: what has been read so far is complete.
  bool complete = false;
  // Zeroes after the last member are padding, and decoding ends with them.
  bool padding = false;
  std::atomic<bool> busy{false};

  ~Decoder() {
    EVP_MD_CTX_free(blob_hash);
    EVP_MD_CTX_free(tar_hash);
    if (zlib_ready) inflateEnd(&zlib);
    if (zstd) ZSTD_freeDCtx(zstd);
  }

  bool Init(const EVP_MD* blob, const EVP_MD* tar) {
    if (blob && !((blob_hash = EVP_MD_CTX_new()) && EVP_DigestInit_ex(blob_hash, blob, nullptr) == 1)) return false;
    if (tar && !((tar_hash = EVP_MD_CTX_new()) && EVP_DigestInit_ex(tar_hash, tar, nullptr) == 1)) return false;
    if (compression == kGzip) {
      zlib_ready = inflateInit2_(&zlib, kGzipWindowBits, zlibVersion(), sizeof zlib) == kZlibOk;
      return zlib_ready;
    }
    if (compression == kZstd) return (zstd = ZSTD_createDCtx()) != nullptr;
    complete = true;
    return true;
  }

  // One call of the library, which advances `in` and `out`.
  Status Step(ZSTD_inBuffer* in, ZSTD_outBuffer* out) {
    if (compression == kZstd) {
      const size_t left = ZSTD_decompressStream(zstd, out, in);
      if (ZSTD_isError(left)) return kCorrupt;
      complete = left == 0;
      return kDecoded;
    }
    zlib.next_in = static_cast<const uint8_t*>(in->src) + in->pos;
    zlib.avail_in = static_cast<unsigned>(in->size - in->pos);
    zlib.next_out = static_cast<uint8_t*>(out->dst) + out->pos;
    zlib.avail_out = static_cast<unsigned>(out->size - out->pos);
    if (complete && inflateReset(&zlib) != kZlibOk) return kCorrupt;
    complete = false;
    const int result = inflate(&zlib, 0);
    in->pos = in->size - zlib.avail_in;
    out->pos = out->size - zlib.avail_out;
    if (result == kZlibMemory) return kNoMemory;
    if (result != kZlibOk && result != kZlibStreamEnd && result != kZlibBuffer) return kCorrupt;
    complete = result == kZlibStreamEnd;
    return kDecoded;
  }

  // Decodes until the input is used up or the output is full.
  Status Decode(ZSTD_inBuffer* in, ZSTD_outBuffer* out) {
    while (out->pos < out->size) {
      if (complete) {
        if (in->pos == in->size) return kDecoded;
        if (static_cast<const uint8_t*>(in->src)[in->pos] == 0) padding = true;
      }
      if (padding) {
        in->pos = in->size;
        return kDecoded;
      }
      const size_t in_before = in->pos;
      const size_t out_before = out->pos;
      const Status status = Step(in, out);
      if (status != kDecoded) return status;
      // It has taken all input, and needs more to produce more.
      if (in->pos == in_before && out->pos == out_before && !complete) return kDecoded;
    }
    return kDecoded;
  }
};

bool Update(EVP_MD_CTX* hash, const uint8_t* bytes, size_t length) {
  return !hash || EVP_DigestUpdate(hash, bytes, length) == 1;
}

struct DecodeJob : PoolJob {
  Decoder* decoder;
  Bytes input;
  Bytes output;
  Bytes counts;

  ~DecodeJob() override { decoder->busy = false; }

  int Run() override {
    // SAFETY: both buffers stay in place while the arguments are held, and no other thread touches the decoder.
    ZSTD_inBuffer in = {input.data, input.length, 0};
    ZSTD_outBuffer out = {output.data, output.length, 0};
    Status status = kDecoded;
    if (decoder->compression == kNone) {
      in.pos = in.size;
      if (!Update(decoder->tar_hash, input.data, input.length)) return kNoMemory;
    } else {
      status = decoder->Decode(&in, &out);
    }
    if (!Update(decoder->blob_hash, input.data, in.pos) || !Update(decoder->tar_hash, output.data, out.pos)) {
      return kNoMemory;
    }
    const uint32_t moved[2] = {static_cast<uint32_t>(in.pos), static_cast<uint32_t>(out.pos)};
    memcpy(counts.data, moved, kCountsBytes);
    return status;
  }
};

Decoder* GetDecoder(napi_env env, napi_value value) {
  void* data = nullptr;
  return napi_get_value_external(env, value, &data) == napi_ok ? static_cast<Decoder*>(data) : nullptr;
}

// "sha256" or "sha512"; an empty name means no hash.
bool GetHash(napi_env env, napi_value value, const EVP_MD** hash) {
  char name[8] = {};
  size_t length = 0;
  if (napi_get_value_string_latin1(env, value, name, sizeof name, &length) != napi_ok) return false;
  *hash = strcmp(name, "sha256") == 0 ? EVP_sha256() : strcmp(name, "sha512") == 0 ? EVP_sha512() : nullptr;
  return *hash || length == 0;
}

napi_value DecoderOpen(napi_env env, napi_callback_info info) {
  size_t count = 3;
  napi_value args[3];
  if (napi_get_cb_info(env, info, &count, args, nullptr, nullptr) != napi_ok) return nullptr;
  uint32_t compression = 0;
  const EVP_MD* blob = nullptr;
  const EVP_MD* tar = nullptr;
  if (count < 3 || napi_get_value_uint32(env, args[0], &compression) != napi_ok || compression > kZstd ||
      !GetHash(env, args[1], &blob) || !GetHash(env, args[2], &tar)) {
    return ThrowUsage(env, "decoderOpen(compression: 0 to 2, blobHash, tarHash: 'sha256', 'sha512' or '')");
  }
  Decoder* decoder = new (std::nothrow) Decoder{static_cast<Compression>(compression)};
  if (!decoder || !decoder->Init(blob, tar)) {
    delete decoder;
    napi_throw_error(env, nullptr, "decoderOpen: memory ran out");
    return nullptr;
  }
  napi_value result = nullptr;
  const auto finalize = [](napi_env, void* data, void*) { delete static_cast<Decoder*>(data); };
  if (napi_create_external(env, decoder, finalize, nullptr, &result) != napi_ok) delete decoder;
  return result;
}

napi_value DecoderRun(napi_env env, napi_callback_info info) {
  const Arguments<5> args(env, info);
  Bytes input, output, counts;
  Decoder* decoder = args.ok() ? GetDecoder(env, args[0]) : nullptr;
  if (!decoder || !args.GetBytes(1, &input) || !args.GetBytes(2, &output) || !args.GetBytes(3, &counts) ||
      !args.IsFunction(4)) {
    return ThrowUsage(env, "decoderRun(decoder, input, output, counts: Uint8Array, callback: function)");
  }
  if (input.length > kBytesMax || output.length == 0 || output.length > kBytesMax || counts.length != kCountsBytes) {
    return ThrowUsage(env, "decoderRun: input and output are at most 16 MiB, and counts 8 bytes");
  }
  if (decoder->busy.exchange(true)) return ThrowUsage(env, "decoderRun: the decoder is at work");
  DecodeJob* job = new DecodeJob;
  job->decoder = decoder;
  job->input = input;
  job->output = output;
  job->counts = counts;
  PoolJob::Queue(env, "decoderRun", job, args.all(), 5);
  return nullptr;
}

napi_value Hex(napi_env env, EVP_MD_CTX* hash) {
  uint8_t digest[EVP_MAX_MD_SIZE];
  unsigned length = 0;
  char text[2 * EVP_MAX_MD_SIZE];
  if (hash) EVP_DigestFinal_ex(hash, digest, &length);
  for (unsigned at = 0; at < length; at++) {
    text[2 * at] = "0123456789abcdef"[digest[at] >> 4];
    text[2 * at + 1] = "0123456789abcdef"[digest[at] & 15];
  }
  napi_value result = nullptr;
  napi_create_string_latin1(env, text, 2 * length, &result);
  return result;
}

napi_value DecoderEnd(napi_env env, napi_callback_info info) {
  size_t count = 1;
  napi_value args[1];
  if (napi_get_cb_info(env, info, &count, args, nullptr, nullptr) != napi_ok) return nullptr;
  Decoder* decoder = count < 1 ? nullptr : GetDecoder(env, args[0]);
  if (!decoder || decoder->busy) return ThrowUsage(env, "decoderEnd(decoder), which is not at work");
  napi_value result, complete;
  if (napi_create_array_with_length(env, 3, &result) != napi_ok ||
      napi_get_boolean(env, decoder->complete || decoder->padding, &complete) != napi_ok) {
    return nullptr;
  }
  napi_set_element(env, result, 0, complete);
  napi_set_element(env, result, 1, Hex(env, decoder->blob_hash));
  napi_set_element(env, result, 2, Hex(env, decoder->tar_hash));
  return result;
}

}  // namespace

void RegisterLayerDecoder(napi_env env, napi_value exports) {
  SetFunction(env, exports, "decoderOpen", DecoderOpen);
  SetFunction(env, exports, "decoderRun", DecoderRun);
  SetFunction(env, exports, "decoderEnd", DecoderEnd);
}

}  // namespace lazydisk
