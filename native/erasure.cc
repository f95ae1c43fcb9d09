// The erasure code: k data shards and m parity shards over GF(2^8); any k of them restore the data.
//
// The polynomial is x^8+x^4+x^3+x^2+1 (0x11d), the generator a Cauchy matrix 1/(x_i + y_j) whose columns are
// scaled so that the first parity row is all ones: one parity shard is plain XOR, and any square part of the
// matrix stays invertible, because scaling a column by a non-zero constant changes no rank. (Blomer et al., "An
// XOR-Based Erasure-Resilient Coding Scheme", 1995; Plank and Xu, "Optimizing Cauchy Reed-Solomon Codes", 2006.)
//
// The work is one primitive: out = sum of c_j * in_j. A product by a constant is linear over GF(2), so it is one affine
// instruction per vector where the CPU has GFNI, two table shuffles with AVX2 (Plank, Greenan, Miller, "Screaming Fast
// Galois Field Arithmetic", 2013), and one table look-up per byte elsewhere.
#include "addon.h"

#include <cstdlib>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lazydisk {
namespace {

constexpr int kShardsMax = 16;

struct Field {
  uint8_t log[256];
  uint8_t exp[512];
  Field() {
    int value = 1;
    for (int power = 0; power < 255; power++) {
      exp[power] = exp[power + 255] = static_cast<uint8_t>(value);
      log[value] = static_cast<uint8_t>(power);
      value <<= 1;
      if (value & 0x100) value ^= 0x11d;
    }
    exp[510] = exp[511] = 1;
    log[0] = 0;
  }
  uint8_t Mul(uint8_t a, uint8_t b) const { return a && b ? exp[log[a] + log[b]] : 0; }
  uint8_t Inverse(uint8_t a) const { return exp[255 - log[a]]; }
};

const Field field;

// Row `index` of the generator: shard `index` = sum of row[j] * data shard j.
void GeneratorRow(int k, int index, uint8_t* row) {
  if (index < k) {
    memset(row, 0, static_cast<size_t>(k));
    row[index] = 1;
    return;
  }
  // x_i = k + i for the parity rows, y_j = j for the columns: all distinct below 16, so no sum is zero.
  for (int j = 0; j < k; j++) {
    const uint8_t entry = field.Inverse(static_cast<uint8_t>(index ^ j));
    const uint8_t first = field.Inverse(static_cast<uint8_t>(k ^ j));
    row[j] = field.Mul(entry, field.Inverse(first));
  }
}

// Gauss-Jordan elimination. False if singular, which k distinct rows of the generator never are.
bool Invert(int k, uint8_t matrix[kShardsMax][kShardsMax], uint8_t inverse[kShardsMax][kShardsMax]) {
  for (int row = 0; row < k; row++) {
    for (int column = 0; column < k; column++) inverse[row][column] = row == column;
  }
  for (int pivot = 0; pivot < k; pivot++) {
    int found = pivot;
    while (found < k && matrix[found][pivot] == 0) found++;
    if (found == k) return false;
    for (int column = 0; found != pivot && column < k; column++) {
      std::swap(matrix[found][column], matrix[pivot][column]);
      std::swap(inverse[found][column], inverse[pivot][column]);
    }
    const uint8_t scale = field.Inverse(matrix[pivot][pivot]);
    for (int column = 0; column < k; column++) {
      matrix[pivot][column] = field.Mul(matrix[pivot][column], scale);
      inverse[pivot][column] = field.Mul(inverse[pivot][column], scale);
    }
    for (int row = 0; row < k; row++) {
      const uint8_t factor = matrix[row][pivot];
      if (row == pivot || factor == 0) continue;
      for (int column = 0; column < k; column++) {
        matrix[row][column] ^= field.Mul(factor, matrix[pivot][column]);
        inverse[row][column] ^= field.Mul(factor, inverse[pivot][column]);
      }
    }
  }
  return true;
}

// out[from..length) = sum of coefficients[j] * in[j]; for the tail that no vector covers, and for CPUs without vectors.
void CombineBytes(int count, const uint8_t* coefficients, const uint8_t* const* in, uint8_t* out, size_t from,
                  size_t length) {
  for (size_t at = from; at < length; at++) out[at] = 0;
  for (int j = 0; j < count; j++) {
    const uint8_t c = coefficients[j];
    if (c == 0) continue;
    if (c == 1) {
      for (size_t at = from; at < length; at++) out[at] ^= in[j][at];
      continue;
    }
    uint8_t table[256];
    for (int value = 0; value < 256; value++) table[value] = field.Mul(c, static_cast<uint8_t>(value));
    for (size_t at = from; at < length; at++) out[at] ^= table[in[j][at]];
  }
}

#if defined(__x86_64__)
// The 8x8 bit matrix of "times c", in the byte order that GF2P8AFFINEQB wants: row of output bit 7 first.
uint64_t AffineMatrix(uint8_t c) {
  uint64_t matrix = 0;
  for (int bit = 0; bit < 8; bit++) {
    const uint8_t column = field.Mul(c, static_cast<uint8_t>(1 << bit));
    for (int row = 0; row < 8; row++) {
      if (column >> row & 1) matrix |= 1ULL << ((7 - row) * 8 + bit);
    }
  }
  return matrix;
}

__attribute__((target("gfni,avx2"))) size_t CombineGfni(int count, const uint8_t* coefficients,
                                                        const uint8_t* const* in, uint8_t* out, size_t length) {
  __m256i matrix[kShardsMax];
  for (int j = 0; j < count; j++) matrix[j] = _mm256_set1_epi64x(static_cast<long long>(AffineMatrix(coefficients[j])));
  size_t at = 0;
  for (; at + 64 <= length; at += 64) {
    __m256i low = _mm256_setzero_si256();
    __m256i high = _mm256_setzero_si256();
    for (int j = 0; j < count; j++) {
      // SAFETY: at + 64 <= length, and every input and the output are at least `length` long (checked by callers).
      const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in[j] + at));
      const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in[j] + at + 32));
      low = _mm256_xor_si256(low, _mm256_gf2p8affine_epi64_epi8(a, matrix[j], 0));
      high = _mm256_xor_si256(high, _mm256_gf2p8affine_epi64_epi8(b, matrix[j], 0));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + at), low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + at + 32), high);
  }
  return at;
}

__attribute__((target("avx2"))) size_t CombineAvx2(int count, const uint8_t* coefficients, const uint8_t* const* in,
                                                   uint8_t* out, size_t length) {
  __m256i low_table[kShardsMax];
  __m256i high_table[kShardsMax];
  for (int j = 0; j < count; j++) {
    uint8_t low[16];
    uint8_t high[16];
    for (int nibble = 0; nibble < 16; nibble++) {
      low[nibble] = field.Mul(coefficients[j], static_cast<uint8_t>(nibble));
      high[nibble] = field.Mul(coefficients[j], static_cast<uint8_t>(nibble << 4));
    }
    low_table[j] = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(low)));
    high_table[j] = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(high)));
  }
  const __m256i mask = _mm256_set1_epi8(0x0f);
  size_t at = 0;
  for (; at + 32 <= length; at += 32) {
    __m256i sum = _mm256_setzero_si256();
    for (int j = 0; j < count; j++) {
      // SAFETY: at + 32 <= length, as above.
      const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in[j] + at));
      const __m256i low = _mm256_shuffle_epi8(low_table[j], _mm256_and_si256(bytes, mask));
      const __m256i high = _mm256_shuffle_epi8(high_table[j], _mm256_and_si256(_mm256_srli_epi64(bytes, 4), mask));
      sum = _mm256_xor_si256(sum, _mm256_xor_si256(low, high));
    }
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + at), sum);
  }
  return at;
}

enum class Simd { kNone, kAvx2, kGfni };

// The best that the CPU supports; LAZYDISK_SIMD=none or avx2 limits it, so that every path can be tested on any
// machine.
Simd BestSimd() {
  const char* wanted = getenv("LAZYDISK_SIMD");
  if ((wanted && strcmp(wanted, "none") == 0) || !__builtin_cpu_supports("avx2")) return Simd::kNone;
  if ((wanted && strcmp(wanted, "avx2") == 0) || !__builtin_cpu_supports("gfni")) return Simd::kAvx2;
  return Simd::kGfni;
}
#endif

void Combine(int count, const uint8_t* coefficients, const uint8_t* const* in, uint8_t* out, size_t length) {
  size_t done = 0;
#if defined(__x86_64__)
  static const Simd simd = BestSimd();
  if (simd == Simd::kGfni) {
    done = CombineGfni(count, coefficients, in, out, length);
  } else if (simd == Simd::kAvx2) {
    done = CombineAvx2(count, coefficients, in, out, length);
  }
#endif
  CombineBytes(count, coefficients, in, out, done, length);
}

bool GetInt(napi_env env, napi_value value, int32_t* out) {
  return napi_get_value_int32(env, value, out) == napi_ok;
}

bool IsCode(int32_t k, int32_t m) { return k >= 1 && m >= 0 && k + m <= kShardsMax; }

// erasureEncode(k, m, shards): fills shards k to k+m-1 of one array of k+m shards of equal length.
napi_value Encode(napi_env env, napi_callback_info info) {
  napi_value args[3];
  size_t argc = 3;
  int32_t k;
  int32_t m;
  Bytes shards;
  napi_get_cb_info(env, info, &argc, args, nullptr, nullptr);
  if (argc != 3 || !GetInt(env, args[0], &k) || !GetInt(env, args[1], &m) || !IsCode(k, m) ||
      !GetBytes(env, args[2], &shards) || shards.length % static_cast<size_t>(k + m) != 0) {
    return ThrowUsage(env, "erasureEncode(k, m, shards: (k + m) * shardBytes)");
  }
  const size_t length = shards.length / static_cast<size_t>(k + m);
  const uint8_t* in[kShardsMax];
  for (int j = 0; j < k; j++) in[j] = shards.data + static_cast<size_t>(j) * length;
  for (int index = k; index < k + m; index++) {
    uint8_t row[kShardsMax];
    GeneratorRow(k, index, row);
    Combine(k, row, in, shards.data + static_cast<size_t>(index) * length, length);
  }
  return nullptr;
}

// erasureReconstruct(k, m, shards, present): rebuilds the data shards whose bit in `present` is clear, from the
// first k shards whose bit is set. Returns false if fewer than k are set.
napi_value Reconstruct(napi_env env, napi_callback_info info) {
  napi_value args[4];
  size_t argc = 4;
  int32_t k;
  int32_t m;
  int32_t present;
  Bytes shards;
  napi_get_cb_info(env, info, &argc, args, nullptr, nullptr);
  if (argc != 4 || !GetInt(env, args[0], &k) || !GetInt(env, args[1], &m) || !IsCode(k, m) ||
      !GetBytes(env, args[2], &shards) || shards.length % static_cast<size_t>(k + m) != 0 ||
      !GetInt(env, args[3], &present)) {
    return ThrowUsage(env, "erasureReconstruct(k, m, shards: (k + m) * shardBytes, present: bit mask)");
  }
  const size_t length = shards.length / static_cast<size_t>(k + m);
  const uint8_t* in[kShardsMax];
  uint8_t matrix[kShardsMax][kShardsMax];
  uint8_t inverse[kShardsMax][kShardsMax];
  int have = 0;
  for (int index = 0; index < k + m && have < k; index++) {
    if (!(present >> index & 1)) continue;
    in[have] = shards.data + static_cast<size_t>(index) * length;
    GeneratorRow(k, index, matrix[have]);
    have++;
  }
  const bool enough = have == k && Invert(k, matrix, inverse);
  for (int j = 0; enough && j < k; j++) {
    // A missing data shard is never among the inputs, so writing it affects no later one.
    if (!(present >> j & 1)) Combine(k, inverse[j], in, shards.data + static_cast<size_t>(j) * length, length);
  }
  napi_value result;
  napi_get_boolean(env, enough, &result);
  return result;
}

// erasureRow(k, m, index): the generator's row, for an independent implementation to check.
napi_value Row(napi_env env, napi_callback_info info) {
  napi_value args[3];
  size_t argc = 3;
  int32_t k;
  int32_t m;
  int32_t index;
  napi_get_cb_info(env, info, &argc, args, nullptr, nullptr);
  if (argc != 3 || !GetInt(env, args[0], &k) || !GetInt(env, args[1], &m) || !IsCode(k, m) ||
      !GetInt(env, args[2], &index) || index < 0 || index >= k + m) {
    return ThrowUsage(env, "erasureRow(k, m, index)");
  }
  void* data;
  napi_value buffer;
  uint8_t row[kShardsMax];
  GeneratorRow(k, index, row);
  napi_create_buffer_copy(env, static_cast<size_t>(k), row, &data, &buffer);
  return buffer;
}

}  // namespace

void RegisterErasure(napi_env env, napi_value exports) {
  SetFunction(env, exports, "erasureEncode", Encode);
  SetFunction(env, exports, "erasureReconstruct", Reconstruct);
  SetFunction(env, exports, "erasureRow", Row);
}

}  // namespace lazydisk
