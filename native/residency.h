// Which chunk of a drive is in which slot of the slab, in a form that a thread without JavaScript may read. The event
// loop publishes and takes back; any thread looks up. Each slot has a generation, and an eviction changes only that:
// everything published under the old one is stale everywhere at once, with nothing to search for.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "codec.h"

namespace lazydisk {

// The content of a zero chunk. Never written to, so it takes no memory: it is the kernel's page of zeroes.
extern const uint8_t* const kZeroChunk;

// The state of a slab's slots; JavaScript owns the slab's bytes and keeps them alive.
class Residency {
 public:
  static constexpr size_t kSlotsMax = (size_t{1} << 24) - 1;

  // Slots have kChunkBytesMax at most.
  Residency(const uint8_t* slab, size_t slot_bytes, size_t slots);

  size_t slot_bytes() const { return slot_bytes_; }
  size_t slots() const { return slots_.size(); }

  // What a hit map stores for a slot's content; never 0. Event loop only.
  uint64_t TicketOf(size_t slot) const;

  // The slot's bytes, pinned, if it still holds what `ticket` was published for; otherwise null.
  const uint8_t* Pin(uint64_t ticket);
  void Unpin(const uint8_t* bytes);

  // Makes every ticket of the slot stale. False if a reader holds it: its bytes must then stay. Event loop only.
  bool Claim(size_t slot);

  // Whether the slot was pinned since the last call. Event loop only.
  bool TakeUsed(size_t slot);

  // Chunks that were read through all hit maps.
  std::atomic<uint64_t> reads{0};

 private:
  struct Slot {
    std::atomic<uint64_t> generation{1};
    std::atomic<uint32_t> pins{0};
    std::atomic<bool> used{false};
  };

  const uint8_t* slab_;
  size_t slot_bytes_;
  std::vector<Slot> slots_;
};

// For each chunk of one drive, whether it is all zero, and otherwise the ticket of the slot that it was last published
// for, or 0.
class HitMap {
 public:
  // Chunk n is all zero unless bit n % 8 of `stored[n / 8]` is set.
  HitMap(std::shared_ptr<Residency> residency, size_t chunks, const uint8_t* stored);

  Residency& residency() { return *residency_; }
  size_t chunks() const { return chunks_; }
  uint64_t size_bytes() const { return static_cast<uint64_t>(chunks_) * residency_->slot_bytes(); }

  bool IsZero(size_t chunk) const { return !(stored_[chunk / 8] >> chunk % 8 & 1); }

  // Event loop only.
  void Publish(size_t chunk, size_t slot);
  // Null unless the chunk is in a slot.
  const uint8_t* Pin(size_t chunk);

  // Reads that were answered through it, and their bytes.
  std::atomic<uint64_t> reads{0};
  std::atomic<uint64_t> read_bytes{0};

 private:
  std::shared_ptr<Residency> residency_;
  size_t chunks_;
  const std::vector<uint8_t> stored_;
  // From calloc: the pages of a large drive that is hardly read take no memory.
  std::unique_ptr<std::atomic<uint64_t>[], void (*)(void*)> tickets_;
};

}  // namespace lazydisk
