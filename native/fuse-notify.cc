// See fuse-notify.h. Buffers are kept and used again: at most one a place in the queue and one being written.
#include "fuse-notify.h"

#include <linux/fuse.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace lazydisk {

struct Notification {
  size_t length = 0;
  alignas(8) uint8_t bytes[sizeof(fuse_out_header) + Notifier::kBytesMax];
};

namespace {
constexpr size_t kQueueMax = 16;
}

Notifier::~Notifier() {
  for (Notification* one : queue_) delete one;
  for (Notification* one : spare_) delete one;
}

void Notifier::Start(int fd) {
  thread_ = std::thread([this, fd] { Loop(static_cast<unsigned>(fd)); });
}

// The thread may hang in the kernel, not to be interrupted, when the process is killed. So that it then holds
// nothing open but the one descriptor, it leaves the process's descriptor table: whoever waits for the end-of-file
// of a pipe of ours still gets it (src/export/fuse/guard.ts does). The price is that it has no descriptor to wake
// the loop with.
void Notifier::Loop(unsigned fd) {
  if (unshare(CLONE_FILES) == 0) {
    if (fd > 3) syscall(SYS_close_range, 3u, fd - 1, 0u);
    syscall(SYS_close_range, fd + 1, ~0u, 0u);
  }
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    if (stopping_) break;
    Notification* next = queue_.front();
    queue_.pop_front();
    lock.unlock();
    ssize_t written;
    do {
      written = write(static_cast<int>(fd), next->bytes, next->length);
    } while (written < 0 && errno == EINTR);
    lock.lock();
    written < 0 ? counts_.failed++ : counts_.sent++;
    spare_.push_back(next);
  }
  stopped_ = true;
}

bool Notifier::Queue(int code, const iovec* parts, int count, size_t total) {
  Notification* notification = nullptr;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (stopping_ || queue_.size() >= kQueueMax || total > kBytesMax) return false;
    if (!spare_.empty()) {
      notification = spare_.back();
      spare_.pop_back();
    }
  }
  if (!notification) notification = new Notification;
  fuse_out_header header;
  header.len = static_cast<uint32_t>(sizeof header + total);
  header.error = code;
  header.unique = 0;
  memcpy(notification->bytes, &header, sizeof header);
  size_t at = sizeof header;
  // SAFETY: the lengths add up to total, which is at most kBytesMax.
  for (int index = 0; index < count; index++) {
    memcpy(notification->bytes + at, parts[index].iov_base, parts[index].iov_len);
    at += parts[index].iov_len;
  }
  notification->length = at;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    queue_.push_back(notification);
  }
  wake_.notify_one();
  return true;
}

void Notifier::Stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
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
  counts.waiting = queue_.size();
  return counts;
}

}  // namespace lazydisk
