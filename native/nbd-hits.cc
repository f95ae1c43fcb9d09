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
constexpr uint16_t kReplyOffsetHole = 2;
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

const uint8_t* HitBatch::Take(size_t chunk) {
  if (map_->IsZero(chunk)) return kZeroChunk;
  const uint8_t* bytes = map_->Pin(chunk);
  if (bytes) pins_[pin_count_++] = bytes;
  return bytes;
}

void HitBatch::UnpinFrom(size_t pin) {
  while (pin_count_ > pin) map_->residency().Unpin(pins_[--pin_count_]);
}

// SAFETY: slots are pinned until Clear, and nothing writes to the bytes that are sent.
void HitBatch::AddPart(const uint8_t* bytes, size_t length) {
  parts_[part_count_++] = {const_cast<uint8_t*>(bytes), length};
  bytes_ += length;
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

  map_ = map;
  const size_t pins_before = pin_count_;
  const uint8_t* first = Take(chunk);
  const uint8_t* second = first && first_length < length ? Take(chunk + 1) : first;
  if (!second) {
    UnpinFrom(pins_before);
    return false;
  }

  const bool is_hole = is_structured && request.flags == 0 && length >= kHoleBytesMin && first == kZeroChunk &&
                       second == kZeroChunk;
  uint8_t* const header = headers_[replies_++];
  uint8_t* end = header;
  if (is_structured) {
    end = Store(end, htobe32(kStructuredMagic));
    end = Store(end, htobe16(kReplyDone));
    end = Store(end, htobe16(is_hole ? kReplyOffsetHole : kReplyOffsetData));
    end = Store(end, Load<uint64_t>(at + kCookieAt));
    end = Store(end, htobe32(static_cast<uint32_t>(sizeof(uint64_t) + (is_hole ? sizeof(uint32_t) : length))));
    end = Store(end, htobe64(request.offset));
    if (is_hole) end = Store(end, htobe32(request.length));
  } else {
    end = Store(end, htobe32(kSimpleMagic));
    end = Store(end, uint32_t{0});
    end = Store(end, Load<uint64_t>(at + kCookieAt));
  }
  AddPart(header, static_cast<size_t>(end - header));
  if (!is_hole) {
    AddPart(first + from, first_length);
    if (first_length < length) AddPart(second, length - first_length);
  }
  read_bytes_ += length;
  return true;
}

void HitBatch::Clear() {
  UnpinFrom(0);
  replies_ = bytes_ = read_bytes_ = part_count_ = 0;
}

}  // namespace lazydisk
