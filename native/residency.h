// Which chunk of a drive lies in which slot of the slab, told so that a thread without JavaScript may read it. The
// event loop publishes and takes back; any thread looks up. The trick is a generation for each slot, which is all that
// an eviction changes: what was published under the old one is stale everywhere at once, with nothing to search for.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "codec.h"

namespace lazydisk {

// What a zero chunk holds. Never written to, so it takes no memory: it is the kernel's page of zeroes.
extern const uint8_t* const kZeroChunk;

// The state of a slab's slots beside their bytes, which JavaScript owns and keeps alive.
class Residency {
 public:
  static constexpr size_t kSlotsMax = (size_t{1} << 24) - 1;

  // Slots have kChunkBytesMax at most.
  Residency(const uint8_t* slab, size_t slot_bytes, size_t slots);

  size_t slot_bytes() const { return slot_bytes_; }
  size_t slots() const { return slots_.size(); }

  // What a hit map keeps of a slot's content; never 0. Of the event loop.
  uint64_t TicketOf(size_t slot) const;

  // The slot's bytes, pinned, if it still holds what `ticket` was published for; else null.
  const uint8_t* Pin(uint64_t ticket);
  void Unpin(const uint8_t* bytes);

  // Makes every ticket of the slot stale. False if a reader holds it: then its bytes must stay. Of the event loop.
  bool Claim(size_t slot);

  // Whether the slot was pinned since this was asked last. Of the event loop.
  bool TakeUsed(size_t slot);

  // Chunks that were read by way of all hit maps.
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

// For each chunk of one drive whether it is all zero, and if not the ticket of the slot that it was last seen in, or 0.
class HitMap {
 public:
  // Chunk n is all zero unless bit n % 8 of `stored[n / 8]` is set.
  HitMap(std::shared_ptr<Residency> residency, size_t chunks, const uint8_t* stored);

  Residency& residency() { return *residency_; }
  size_t chunks() const { return chunks_; }
  uint64_t size_bytes() const { return static_cast<uint64_t>(chunks_) * residency_->slot_bytes(); }

  bool IsZero(size_t chunk) const { return !(stored_[chunk / 8] >> chunk % 8 & 1); }

  // Of the event loop.
  void Publish(size_t chunk, size_t slot);
  // Null unless the chunk is in a slot.
  const uint8_t* Pin(size_t chunk);

  // Reads that were answered by it, and their bytes.
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
