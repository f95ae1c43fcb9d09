// NBD clients after their handshake, served by one thread that runs no JavaScript. It answers what is in memory itself;
// everything else it leaves in the client's inbox for the event loop, whose answers it sends. So a hit never waits for
// a busy event loop. No call of either side ever blocks: all sockets are non-blocking, and locks are held for one
// sendmsg(2).
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "nbd-client.h"
#include "residency.h"

namespace lazydisk {

class NbdLoop {
 public:
  // `wake` is called from the thread when there is news; it must not block.
  explicit NbdLoop(std::function<void()> wake);
  ~NbdLoop();
  NbdLoop(const NbdLoop&) = delete;
  NbdLoop& operator=(const NbdLoop&) = delete;

  // False, with errno, if no descriptors or no thread are available.
  bool Start();
  // Closes all clients and ends the thread. Nothing is used any more when it returns.
  void Stop();

  // Takes ownership of `fd`, a connected non-blocking stream socket; `head` is what was already read from it. `map` may
  // be null. Returns the client's id, or 0 with errno.
  uint32_t Add(int fd, std::shared_ptr<HitMap> map, bool is_structured, const uint8_t* head, size_t head_bytes);

  // Sends `parts` in order, with nothing in between. Returns how many of their bytes the kernel has not taken; those
  // must stay in place and unchanged until `taken_bytes` has counted them or the client is closed.
  size_t Write(uint32_t id, const iovec* parts, size_t count);

  // While a client is paused, nothing is read from it.
  void Pause(uint32_t id, bool is_paused);
  // Sends what was written and shuts down the sending side; what the client still sends is discarded.
  void End(uint32_t id);
  void Destroy(uint32_t id);

  // The next client's news, if there are any.
  bool TakeNews(NbdNews* news);

  // Reads that were answered here, and their bytes, for all clients.
  uint64_t hit_reads() const { return shared_.hit_reads.load(std::memory_order_relaxed); }
  uint64_t hit_bytes() const { return shared_.hit_bytes.load(std::memory_order_relaxed); }

 private:
  using ClientPtr = std::shared_ptr<NbdClient>;

  void Run();
  int Wait();
  void Attend();
  void Serve(NbdClient& client);
  void Close(NbdClient& client);
  void Ask(const ClientPtr& client);
  ClientPtr Find(uint32_t id);

  std::function<void()> wake_;
  std::thread thread_;
  int epoll_ = -1;
  int event_ = -1;
  std::atomic<bool> is_stopping_{false};
  NbdShared shared_;

  // Guards the members below; taken after a client's own lock, never before it.
  std::mutex mutex_;
  std::unordered_map<uint32_t, ClientPtr> clients_;
  uint32_t last_id_ = 0;
  // Clients with news for the event loop, and those that the event loop wants attended to.
  std::deque<ClientPtr> with_news_;
  std::vector<ClientPtr> to_attend_;

  // The thread only.
  std::unique_ptr<uint8_t[]> buffer_;
  // Clients closed while events are served, because a later event may still point to one.
  std::vector<ClientPtr> closed_;
  // The recent success of spinning: see Wait.
  uint32_t spin_rest_ = 0;
  uint32_t spin_pause_ = 1;
};

}  // namespace lazydisk
