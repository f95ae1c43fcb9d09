// A thread that writes notifications (pages pushed into the kernel's cache) to a FUSE connection. Such a write
// blocks while the kernel holds a page locked, which it does until we answer the read that locked it: so it is
// not for the loop, and the thread never touches JavaScript's memory, but copies.
#pragma once

#include <sys/uio.h>

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

namespace lazydisk {

struct Notification;

class Notifier {
 public:
  // One chunk and its notification header; longer ones are the caller's mistake.
  static constexpr size_t kBytesMax = 512 * 1024 + 64;

  struct Counts {
    uint64_t sent, failed, waiting;
  };

  ~Notifier();

  // Starts the thread; `fd` must stay open until Stopped().
  void Start(int fd);

  // Copies `parts`, together `total` bytes, at most kBytesMax. False if the queue is full or the thread told to stop.
  bool Queue(int code, const iovec* parts, int count, size_t total);

  // Drops what waits. The thread ends when the kernel lets go of it.
  void Stop();

  // Whether the thread has ended; if so it has been joined.
  bool Stopped();

  // Whether the thread may still run.
  bool running() const { return thread_.joinable(); }

  Counts GetCounts();

 private:
  void Loop(unsigned fd);

  std::thread thread_;
  std::mutex mutex_;
  std::condition_variable wake_;
  // Guarded by the mutex.
  std::deque<Notification*> queue_;
  std::vector<Notification*> spare_;
  Counts counts_ = {};
  bool stopping_ = false;
  bool stopped_ = false;
};

}  // namespace lazydisk
