// One NBD client of an NbdLoop (nbd-loop.h): receives its requests, answers those that memory can answer, and sends the
// answers. The comment before a method says what it needs: `the thread` is the loop's, `locked` means with `mutex`
// held.
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "nbd-hits.h"
#include "residency.h"

namespace lazydisk {

// News of one client for the event loop.
struct NbdNews {
  uint32_t id = 0;
  // Bytes from the client, in order, without the requests that were answered.
  std::vector<uint8_t> bytes;
  // Of the bytes that Write left over, how many the kernel has taken since the client was added.
  uint64_t taken_bytes = 0;
  // The client sends nothing more.
  bool is_ended = false;
  // The descriptor is closed, and nothing that was passed to Write is used any more.
  bool is_closed = false;
};

// What the clients of a loop share.
struct NbdShared {
  std::atomic<size_t> clients{0};
  std::atomic<uint64_t> hit_reads{0};
  std::atomic<uint64_t> hit_bytes{0};
};

class NbdClient : public std::enable_shared_from_this<NbdClient> {
 public:
  // The most bytes that wait for the event loop.
  static constexpr size_t kInboxBytesMax = 64 * 1024;
  // The size of the thread's read buffer, shared by all clients.
  static constexpr size_t kBufferBytes = 64 * 1024;

  // `tell` is called, locked, when there is news that the event loop has not been told of.
  NbdClient(int fd, std::shared_ptr<HitMap> map, bool is_structured, NbdShared* shared,
            std::function<void(NbdClient&)> tell)
      : fd_(fd), map_(std::move(map)), is_structured_(is_structured), shared_(shared), tell_(std::move(tell)) {}
  NbdClient(const NbdClient&) = delete;
  NbdClient& operator=(const NbdClient&) = delete;

  // Before it is served.
  void Begin(uint32_t id, const uint8_t* head, size_t head_bytes);

  // The event loop: see NbdLoop::Write.
  size_t Write(const iovec* parts, size_t count);
  void Pause(bool is_paused);
  void End();
  void Destroy();
  // Returns its news; true if the thread waits for that and must be asked to go on.
  bool TakeNews(NbdNews* news);

  // The thread: does what can be done now, reading into `buffer`. Returns the events to wait for, or -1 when the client
  // is finished.
  int Serve(uint8_t* buffer);
  // The thread. The descriptor must no longer be watched.
  void Close();
  // The thread.
  int fd() const { return fd_; }
  uint32_t watched = 0;

 private:
  bool Read(uint8_t* buffer, bool is_ending);
  ssize_t Receive(uint8_t* buffer, size_t at);
  size_t Take(const uint8_t* bytes, size_t length);
  size_t PassOn(const uint8_t* bytes, size_t length);
  bool Send(HitBatch& batch);
  bool Flush();
  size_t BatchBytesMax() const;
  // Locked.
  void Tell();

  // Bytes that wait to be sent: owned by the caller of Write, or in `copy`.
  struct Unsent {
    const uint8_t* bytes;
    size_t length;
    std::unique_ptr<uint8_t[]> copy;
  };

  // Changed by the thread, locked.
  int fd_;
  const std::shared_ptr<HitMap> map_;
  const bool is_structured_;
  NbdShared* const shared_;
  const std::function<void(NbdClient&)> tell_;

  // The thread only: bytes read and not processed yet, and the data bytes of a write that is passed on.
  std::vector<uint8_t> input_;
  size_t data_bytes_ = 0;
  // The stream is out of step: the rest cannot be parsed, and the event loop is about to notice.
  bool is_lost_ = false;
  bool has_read_end_ = false;
  // About how many requests it has in flight.
  size_t depth_ = 1;

  std::mutex mutex_;
  // Locked.
  std::deque<Unsent> out_;
  NbdNews news_;
  bool has_news_ = false;
  bool is_paused_ = false;
  bool is_ending_ = false;
  bool is_write_shut_ = false;
  bool is_destroyed_ = false;
  // The thread is waiting for room in the inbox.
  bool is_inbox_full_ = false;
};

}  // namespace lazydisk
