// The sizes that opening and sealing a chunk share; see FORMAT.md, "Chunks".
#pragma once

#include <cstddef>
#include <cstdint>

namespace lazydisk {

constexpr size_t kIdBytes = 32;
constexpr size_t kKeyBytes = 32;
constexpr size_t kTagBytes = 16;
constexpr size_t kNonceBytes = 12;
constexpr size_t kChunkBytesMax = 512 * 1024;
constexpr uint8_t kCodecRaw = 0;
constexpr uint8_t kCodecZstd = 1;

}  // namespace lazydisk
