// Residency and HitMap (residency.h) for JavaScript.
#include <new>

#include "addon.h"
#include "handle.h"
#include "residency.h"

namespace lazydisk {
namespace {

constexpr size_t kChunksMax = size_t{1} << 32;

napi_value ResidencyOpen(napi_env env, napi_callback_info info) {
  Arguments<2> args(env, info);
  Bytes slab;
  uint32_t slot_bytes = 0;
  if (!args.ok() || !GetBytes(env, args[0], &slab) || !args.GetUint32(1, &slot_bytes) || slot_bytes == 0 ||
      slot_bytes > kChunkBytesMax || slab.length / slot_bytes > Residency::kSlotsMax) {
    return ThrowUsage(env, "residencyOpen(slab: Uint8Array, slotBytes)");
  }
  return NewHandle(env, std::make_shared<Residency>(slab.data, slot_bytes, slab.length / slot_bytes));
}

napi_value ResidencyClaim(napi_env env, napi_callback_info info) {
  Arguments<2> args(env, info);
  uint32_t slot = 0;
  auto residency = args.ok() ? HandleOf<Residency>(env, args[0]) : nullptr;
  if (!residency || !args.GetUint32(1, &slot) || slot >= residency->slots()) {
    return ThrowUsage(env, "residencyClaim(residency, slot)");
  }
  return Bool(env, residency->Claim(slot));
}

napi_value ResidencyTakeUsed(napi_env env, napi_callback_info info) {
  Arguments<2> args(env, info);
  uint32_t slot = 0;
  auto residency = args.ok() ? HandleOf<Residency>(env, args[0]) : nullptr;
  if (!residency || !args.GetUint32(1, &slot) || slot >= residency->slots()) {
    return ThrowUsage(env, "residencyTakeUsed(residency, slot)");
  }
  return Bool(env, residency->TakeUsed(slot));
}

napi_value ResidencyReads(napi_env env, napi_callback_info info) {
  Arguments<1> args(env, info);
  auto residency = args.ok() ? HandleOf<Residency>(env, args[0]) : nullptr;
  if (!residency) return ThrowUsage(env, "residencyReads(residency)");
  return Double(env, static_cast<double>(residency->reads.load()));
}

napi_value HitMapOpen(napi_env env, napi_callback_info info) {
  Arguments<3> args(env, info);
  int64_t chunks = 0;
  Bytes stored;
  auto residency = args.ok() ? HandleOf<Residency>(env, args[0]) : nullptr;
  if (!residency || !args.GetInt64(1, &chunks) || chunks < 1 || static_cast<uint64_t>(chunks) > kChunksMax ||
      !GetBytes(env, args[2], &stored) || stored.length != (static_cast<size_t>(chunks) + 7) / 8) {
    return ThrowUsage(env, "hitMapOpen(residency, chunks, stored: Uint8Array of a bit a chunk)");
  }
  try {
    return NewHandle(env, std::make_shared<HitMap>(std::move(residency), static_cast<size_t>(chunks), stored.data));
  } catch (const std::bad_alloc&) {
    napi_throw_error(env, nullptr, "hitMapOpen: out of memory");
    return nullptr;
  }
}

napi_value HitMapPublish(napi_env env, napi_callback_info info) {
  Arguments<3> args(env, info);
  uint32_t chunk = 0, slot = 0;
  auto map = args.ok() ? HandleOf<HitMap>(env, args[0]) : nullptr;
  if (!map || !args.GetUint32(1, &chunk) || chunk >= map->chunks() || !args.GetUint32(2, &slot) ||
      slot >= map->residency().slots()) {
    return ThrowUsage(env, "hitMapPublish(hitMap, chunk, slot)");
  }
  map->Publish(chunk, slot);
  return nullptr;
}

napi_value HitMapCounts(napi_env env, napi_callback_info info) {
  Arguments<1> args(env, info);
  auto map = args.ok() ? HandleOf<HitMap>(env, args[0]) : nullptr;
  if (!map) return ThrowUsage(env, "hitMapCounts(hitMap)");
  return Doubles(env, {static_cast<double>(map->reads.load()), static_cast<double>(map->read_bytes.load())});
}

}  // namespace

void RegisterResidency(napi_env env, napi_value exports) {
  SetFunction(env, exports, "residencyOpen", ResidencyOpen);
  SetFunction(env, exports, "residencyClaim", ResidencyClaim);
  SetFunction(env, exports, "residencyTakeUsed", ResidencyTakeUsed);
  SetFunction(env, exports, "residencyReads", ResidencyReads);
  SetFunction(env, exports, "hitMapOpen", HitMapOpen);
  SetFunction(env, exports, "hitMapPublish", HitMapPublish);
  SetFunction(env, exports, "hitMapCounts", HitMapCounts);
}

}  // namespace lazydisk
