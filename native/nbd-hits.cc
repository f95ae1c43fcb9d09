// See nbd-hits.h.
#include "nbd-hits.h"

#include <endian.h>

#include <cstring>

namespace lazydisk {

namespace {

constexpr uint32_t kRequestMagic = 0x25609513;
constexpr uint32_t kSimpleMagic = 0x67446698;
constexpr uint32_t kStructuredMagic = 0x668e33ef;
constexpr uint16_t kRead = 0;
constexpr uint16_t kFlagDf = 1 << 2;
constexpr uint16_t kReplyDone = 1 << 0;
constexpr uint16_t kReplyOffsetData = 1;
constexpr size_t kCookieAt = 8;

template <typename T>
T Load(const uint8_t* at) {
  T value;
  memcpy(&value, at, sizeof value);
  return value;
}

template <typename T>
uint8_t* Store(uint8_t* at, T value) {
  memcpy(at, &value, sizeof value);
  return at + sizeof value;
}

}  // namespace

NbdRequest ParseRequest(const uint8_t* at) {
  return {be32toh(Load<uint32_t>(at)) == kRequestMagic, be16toh(Load<uint16_t>(at + 4)),
          be16toh(Load<uint16_t>(at + 6)), be64toh(Load<uint64_t>(at + 16)), be32toh(Load<uint32_t>(at + 24))};
}

bool HitBatch::Add(const uint8_t* at, const NbdRequest& request, HitMap* map, bool is_structured) {
  const uint64_t length = request.length;
  if (request.type != kRead || (request.flags != 0 && !(is_structured && request.flags == kFlagDf)) || length == 0 ||
      length > kHitBytesMax || length > bytes_max_ || request.offset > map->size_bytes() ||
      length > map->size_bytes() - request.offset) {
    return false;
  }
  const size_t chunk_bytes = map->residency().slot_bytes();
  const size_t from = request.offset % chunk_bytes;
  if (from + length > 2 * chunk_bytes) return false;
  const size_t chunk = request.offset / chunk_bytes;
  const size_t first_length = length < chunk_bytes - from ? length : chunk_bytes - from;

  const uint8_t* first = map->Pin(chunk);
  if (!first) return false;
  pins_[pin_count_] = first;
  if (first_length < length) {
    const uint8_t* second = map->Pin(chunk + 1);
    if (!second) {
      map->residency().Unpin(first);
      return false;
    }
    pins_[++pin_count_] = second;
  }
  pin_count_++;
  map_ = map;

  uint8_t* const header = headers_[replies_++];
  uint8_t* end = header;
  if (is_structured) {
    end = Store(end, htobe32(kStructuredMagic));
    end = Store(end, htobe16(kReplyDone));
    end = Store(end, htobe16(kReplyOffsetData));
    end = Store(end, Load<uint64_t>(at + kCookieAt));
    end = Store(end, htobe32(static_cast<uint32_t>(sizeof(uint64_t) + length)));
    end = Store(end, htobe64(request.offset));
  } else {
    end = Store(end, htobe32(kSimpleMagic));
    end = Store(end, uint32_t{0});
    end = Store(end, Load<uint64_t>(at + kCookieAt));
  }
  // SAFETY: the slots are pinned until Clear, and nobody writes to what is sent.
  const auto add = [this](const uint8_t* bytes, size_t count) {
    parts_[part_count_++] = {const_cast<uint8_t*>(bytes), count};
    bytes_ += count;
  };
  add(header, static_cast<size_t>(end - header));
  add(first + from, first_length);
  if (first_length < length) add(pins_[pin_count_ - 1], length - first_length);
  read_bytes_ += length;
  return true;
}

void HitBatch::Clear() {
  for (size_t at = 0; at < pin_count_; at++) map_->residency().Unpin(pins_[at]);
  replies_ = bytes_ = read_bytes_ = part_count_ = pin_count_ = 0;
}

}  // namespace lazydisk
