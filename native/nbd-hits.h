// NBD requests that memory can answer, without JavaScript: parsed, looked up, and gathered into one sendmsg(2) that
// reads from the slab in place. All other bytes of a client are left unchanged for the event loop.
// Source: the NBD protocol specification, "Transmission phase".
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>

#include "residency.h"

namespace lazydisk {

constexpr size_t kRequestBytes = 28;
// A longer read goes to JavaScript, which splits it if the client allows that.
constexpr size_t kHitBytesMax = 256 * 1024;
// As HOLE_BYTES_MIN in src/export/nbd/read-pieces.ts.
constexpr size_t kHoleBytesMin = 64 * 1024;

struct NbdRequest {
  bool is_valid;
  uint16_t flags;
  uint16_t type;
  uint64_t offset;
  uint32_t length;
};

// `at` must have kRequestBytes.
NbdRequest ParseRequest(const uint8_t* at);

// Replies whose data is in the slab, up to about `bytes_max`. After sending them, call Clear, which releases the slots.
class HitBatch {
 public:
  explicit HitBatch(size_t bytes_max) : bytes_max_(bytes_max) {}
  HitBatch(const HitBatch&) = delete;
  HitBatch& operator=(const HitBatch&) = delete;
  ~HitBatch() { Clear(); }

  // Whether the reply to `request` would fit.
  bool HasRoomFor(const NbdRequest& request) const {
    return replies_ == 0 || (replies_ < kRepliesMax && bytes_ + kHeaderBytesMax + request.length <= bytes_max_);
  }

  // Adds the reply to the request at `at` if it is a read whose bytes are all in memory or zero. There must be room for
  // it.
  bool Add(const uint8_t* at, const NbdRequest& request, HitMap* map, bool is_structured);
  bool is_empty() const { return replies_ == 0; }

  iovec* parts() { return parts_; }
  size_t part_count() const { return part_count_; }
  size_t bytes() const { return bytes_; }
  size_t replies() const { return replies_; }
  size_t read_bytes() const { return read_bytes_; }
  // The number of chunks that the replies read from slots.
  size_t pin_count() const { return pin_count_; }

  void Clear();

 private:
  // The chunk's bytes, pinned unless they are zeroes, or null.
  const uint8_t* Take(size_t chunk);
  void UnpinFrom(size_t pin);
  void AddPart(const uint8_t* bytes, size_t length);

  static constexpr size_t kRepliesMax = 64;
  static constexpr size_t kHeaderBytesMax = 32;

  size_t bytes_max_;
  size_t replies_ = 0;
  size_t bytes_ = 0;
  size_t read_bytes_ = 0;
  size_t part_count_ = 0;
  size_t pin_count_ = 0;
  HitMap* map_ = nullptr;
  // A header and at most two chunks per reply.
  iovec parts_[kRepliesMax * 3];
  const uint8_t* pins_[kRepliesMax * 2];
  uint8_t headers_[kRepliesMax][kHeaderBytesMax];
};

}  // namespace lazydisk
