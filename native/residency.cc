// See residency.h.
#include "residency.h"

#include <cstdlib>
#include <new>

namespace lazydisk {

namespace {
constexpr int kSlotBits = 24;
constexpr uint64_t kSlotMask = (uint64_t{1} << kSlotBits) - 1;
static_assert(Residency::kSlotsMax <= kSlotMask);
uint8_t zeroes[kChunkBytesMax];
}  // namespace

const uint8_t* const kZeroChunk = zeroes;

Residency::Residency(const uint8_t* slab, size_t slot_bytes, size_t slots)
    : slab_(slab), slot_bytes_(slot_bytes), slots_(slots) {}

uint64_t Residency::TicketOf(size_t slot) const {
  return slots_[slot].generation.load(std::memory_order_relaxed) << kSlotBits | slot;
}

// SAFETY: the pin is counted before the generation is read, and Claim changes the generation before it reads the pins,
// all in one total order (seq_cst). So either this sees the new generation, or Claim sees the pin. A slot's bytes are
// written only after a Claim that found no pins, and were complete before their ticket was published.
const uint8_t* Residency::Pin(uint64_t ticket) {
  const size_t index = ticket & kSlotMask;
  Slot& slot = slots_[index];
  slot.pins.fetch_add(1);
  if (slot.generation.load() != ticket >> kSlotBits) {
    slot.pins.fetch_sub(1);
    return nullptr;
  }
  if (!slot.used.load(std::memory_order_relaxed)) slot.used.store(true, std::memory_order_relaxed);
  return slab_ + index * slot_bytes_;
}

void Residency::Unpin(const uint8_t* bytes) { slots_[(bytes - slab_) / slot_bytes_].pins.fetch_sub(1); }

bool Residency::Claim(size_t slot) {
  slots_[slot].generation.fetch_add(1);
  return slots_[slot].pins.load() == 0;
}

bool Residency::TakeUsed(size_t slot) { return slots_[slot].used.exchange(false, std::memory_order_relaxed); }

HitMap::HitMap(std::shared_ptr<Residency> residency, size_t chunks, const uint8_t* stored)
    : residency_(std::move(residency)),
      chunks_(chunks),
      stored_(stored, stored + (chunks + 7) / 8),
      tickets_(static_cast<std::atomic<uint64_t>*>(calloc(chunks, sizeof(std::atomic<uint64_t>))), free) {
  // SAFETY: zeroed memory is a valid atomic integer of value 0 in every C++ library of this platform.
  static_assert(sizeof(std::atomic<uint64_t>) == sizeof(uint64_t));
  if (!tickets_) throw std::bad_alloc();
}

void HitMap::Publish(size_t chunk, size_t slot) {
  tickets_[chunk].store(residency_->TicketOf(slot), std::memory_order_release);
}

const uint8_t* HitMap::Pin(size_t chunk) {
  const uint64_t ticket = tickets_[chunk].load(std::memory_order_acquire);
  return ticket == 0 ? nullptr : residency_->Pin(ticket);
}

}  // namespace lazydisk
