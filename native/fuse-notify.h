// A thread that pushes chunks into the kernel's page cache (FUSE_NOTIFY_STORE), straight from the slab. Such a write
// blocks while the kernel holds a page locked, until we answer the read that locked it, so it must not run on the event
// loop. A chunk stays pinned in its slot from Push to the end of its write, which nothing else waits for.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>

#include "residency.h"

namespace lazydisk {

class Notifier {
 public:
  // The most bytes of one chunk; pushed zeroes are not longer either.
  static constexpr size_t kBytesMax = kChunkBytesMax;

  struct Counts {
    uint64_t sent, failed, waiting;
  };

  ~Notifier();

  // Starts the thread; `fd` must stay open until Stopped().
  void Start(int fd);

  // Queues the `length` bytes at `offset` of inode `node_id`: the chunk that begins there in `map`, or zeroes if there
  // is no map. False if the queue is full, the chunk is not in memory, or the thread has been told to stop.
  bool Push(uint64_t node_id, uint64_t offset, uint32_t length, std::shared_ptr<HitMap> map);

  // Drops waiting pushes. The thread ends when the kernel releases it.
  void Stop();

  // Whether the thread has ended; if so it has been joined.
  bool Stopped();

  // Whether the thread may still run.
  bool running() const { return thread_.joinable(); }

  Counts GetCounts();

 private:
  struct Chunk {
    uint64_t node_id;
    uint64_t offset;
    uint32_t length;
    const uint8_t* bytes;
    // The map in which `bytes` are pinned; null for zeroes.
    std::shared_ptr<HitMap> map;
  };

  void Loop(unsigned fd);
  static void Unpin(const Chunk& chunk);

  std::thread thread_;
  std::mutex mutex_;
  std::condition_variable wake_;
  // Guarded by the mutex. The front element is being written if is_writing_.
  std::deque<Chunk> queue_;
  Counts counts_ = {};
  bool is_writing_ = false;
  bool stopping_ = false;
  bool stopped_ = false;
};

}  // namespace lazydisk
