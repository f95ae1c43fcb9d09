// See fuse-notify.h.
#include "fuse-notify.h"

#include <linux/fuse.h>
#include <sched.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace lazydisk {

namespace {

constexpr size_t kQueueMax = 16;

// A write may wait for a read, and the read for a free slot, so pushes hold at most about a quarter of the slots, and
// never the only one.
size_t PinsMax(HitMap* map) {
  return map ? std::min(kQueueMax, (map->residency().slots() + 2) / 4) : kQueueMax;
}

}  // namespace

Notifier::~Notifier() {
  for (const Chunk& chunk : queue_) Unpin(chunk);
}

void Notifier::Start(int fd) {
  thread_ = std::thread([this, fd] { Loop(static_cast<unsigned>(fd)); });
}

// When the process is killed, the thread may hang in the kernel, uninterruptibly. It leaves the process's descriptor
// table so that it then keeps only one descriptor open: readers that wait for the end of file of one of our pipes still
// get it (src/export/fuse/guard.ts does). In return it has no descriptor to wake the loop with.
void Notifier::Loop(unsigned fd) {
  if (unshare(CLONE_FILES) == 0) {
    if (fd > 3) syscall(SYS_close_range, 3u, fd - 1, 0u);
    syscall(SYS_close_range, fd + 1, ~0u, 0u);
  }
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    if (stopping_) break;
    is_writing_ = true;
    // SAFETY: others only add or drop elements after this one, and neither moves an element of a deque.
    const Chunk& chunk = queue_.front();
    lock.unlock();
    fuse_notify_store_out store = {};
    store.nodeid = chunk.node_id;
    store.offset = chunk.offset;
    store.size = chunk.length;
    fuse_out_header header = {};
    header.len = static_cast<uint32_t>(sizeof header + sizeof store + chunk.length);
    header.error = FUSE_NOTIFY_STORE;
    const iovec parts[] = {{&header, sizeof header},
                           {&store, sizeof store},
                           {const_cast<uint8_t*>(chunk.bytes), chunk.length}};
    ssize_t written;
    do {
      written = writev(static_cast<int>(fd), parts, 3);
    } while (written < 0 && errno == EINTR);
    lock.lock();
    written < 0 ? counts_.failed++ : counts_.sent++;
    Unpin(chunk);
    queue_.pop_front();
    is_writing_ = false;
  }
  stopped_ = true;
}

bool Notifier::Push(uint64_t node_id, uint64_t offset, uint32_t length, std::shared_ptr<HitMap> map) {
  const uint8_t* bytes = kZeroChunk;
  std::lock_guard<std::mutex> lock(mutex_);
  if (stopping_ || queue_.size() >= PinsMax(map.get()) || length > kBytesMax) return false;
  if (map) {
    const size_t slot_bytes = map->residency().slot_bytes();
    if (offset % slot_bytes != 0 || length > slot_bytes || offset / slot_bytes >= map->chunks()) return false;
    bytes = map->Pin(offset / slot_bytes);
    if (!bytes) return false;
  }
  queue_.push_back({node_id, offset, length, bytes, std::move(map)});
  wake_.notify_one();
  return true;
}

void Notifier::Unpin(const Chunk& chunk) {
  if (chunk.map) chunk.map->residency().Unpin(chunk.bytes);
}

void Notifier::Stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    while (queue_.size() > (is_writing_ ? 1 : 0)) {
      Unpin(queue_.back());
      queue_.pop_back();
    }
  }
  wake_.notify_one();
}

bool Notifier::Stopped() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!stopped_) return false;
  }
  if (thread_.joinable()) thread_.join();
  return true;
}

Notifier::Counts Notifier::GetCounts() {
  std::lock_guard<std::mutex> lock(mutex_);
  Counts counts = counts_;
  counts.waiting = queue_.size() - (is_writing_ ? 1 : 0);
  return counts;
}

}  // namespace lazydisk
