// See nbd-loop.h.
#include "nbd-loop.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

namespace lazydisk {

namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kBufferBytes = 64 * 1024;
constexpr int kEventsMax = 64;
constexpr size_t kPartsMax = 64;
// A client at depth 1 asks again within some ten microseconds, and to sleep and be woken takes longer than that.
constexpr auto kSpin = std::chrono::microseconds(20);
constexpr uint32_t kSpinPauseMax = 1024;
// A client with several requests in flight sends them one by one; answering all at once saves both sides wake-ups.
constexpr auto kGather = std::chrono::microseconds(10);
// All clients together may have so much of hits that they asked for and do not take.
constexpr size_t kUnsentBytesMax = 16 * 1024 * 1024;
constexpr size_t kBatchBytesMin = 16 * 1024;
constexpr uint16_t kWrite = 1;

void Relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

ssize_t SendParts(int fd, iovec* parts, size_t count) {
  msghdr message = {};
  message.msg_iov = parts;
  message.msg_iovlen = count;
  ssize_t sent;
  do sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  while (sent < 0 && errno == EINTR);
  return sent;
}

}  // namespace

// Bytes that wait to be sent: somebody else's, or in `copy`.
struct Unsent {
  const uint8_t* bytes;
  size_t length;
  std::unique_ptr<uint8_t[]> copy;
};

struct NbdLoop::Client : std::enable_shared_from_this<Client> {
  uint32_t id = 0;
  int fd = -1;
  std::shared_ptr<HitMap> map;
  bool is_structured = false;

  // Of the thread alone: what was read and not taken yet, the data of a write that is passed on, the events asked for.
  std::vector<uint8_t> input;
  size_t data_bytes = 0;
  // Out of step: nothing is understood any more, and the event loop is about to notice.
  bool is_lost = false;
  bool has_read_end = false;
  uint32_t watched = 0;
  size_t depth = 1;

  std::mutex mutex;
  // Guarded by it.
  std::deque<Unsent> out;
  NbdNews news;
  bool has_news = false;
  bool is_paused = false;
  bool is_ending = false;
  bool is_write_shut = false;
  bool is_destroyed = false;
  // The thread waits for room in the inbox.
  bool is_inbox_full = false;
};

NbdLoop::NbdLoop(std::function<void()> wake) : wake_(std::move(wake)), buffer_(new uint8_t[kBufferBytes]) {}

NbdLoop::~NbdLoop() { Stop(); }

bool NbdLoop::Start() {
  epoll_ = epoll_create1(EPOLL_CLOEXEC);
  event_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  epoll_event watch = {};
  watch.events = EPOLLIN;
  watch.data.ptr = nullptr;
  if (epoll_ < 0 || event_ < 0 || epoll_ctl(epoll_, EPOLL_CTL_ADD, event_, &watch) < 0) return false;
  // Signals are for Node's own threads.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    thread_ = std::thread([this] { Run(); });
  } catch (const std::system_error& error) {
    errno = error.code().value();
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return thread_.joinable();
}

void NbdLoop::Stop() {
  is_stopping_ = true;
  if (thread_.joinable()) {
    eventfd_write(event_, 1);
    thread_.join();
  }
  if (epoll_ >= 0) close(epoll_);
  if (event_ >= 0) close(event_);
  epoll_ = event_ = -1;
}

uint32_t NbdLoop::Add(int fd, std::shared_ptr<HitMap> map, bool is_structured, const uint8_t* head,
                      size_t head_bytes) {
  auto client = std::make_shared<Client>();
  client->fd = fd;
  client->map = std::move(map);
  client->is_structured = is_structured;
  client->input.assign(head, head + head_bytes);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    while (++last_id_ == 0 || clients_.count(last_id_)) continue;
    client->id = client->news.id = last_id_;
    clients_[client->id] = client;
    client_count_ = clients_.size();
  }
  epoll_event watch = {};
  watch.data.ptr = client.get();
  if (epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &watch) < 0) {
    std::lock_guard<std::mutex> lock(mutex_);
    clients_.erase(client->id);
    client_count_ = clients_.size();
    return 0;
  }
  Ask(*client);
  return client->id;
}

NbdLoop::ClientPtr NbdLoop::Find(uint32_t id) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = clients_.find(id);
  return found == clients_.end() ? nullptr : found->second;
}

size_t NbdLoop::Write(uint32_t id, const iovec* parts, size_t count) {
  const ClientPtr client = Find(id);
  if (!client) return 0;
  size_t unsent = 0;
  {
    std::lock_guard<std::mutex> lock(client->mutex);
    if (client->is_destroyed || client->is_write_shut) return 0;
    size_t sent = 0;
    if (client->out.empty()) {
      // An error is left to the thread to meet.
      sent = std::max<ssize_t>(0, SendParts(client->fd, const_cast<iovec*>(parts), count));
    }
    for (size_t at = 0; at < count; at++) {
      const size_t done = std::min(sent, parts[at].iov_len);
      sent -= done;
      if (done == parts[at].iov_len) continue;
      const uint8_t* rest = static_cast<const uint8_t*>(parts[at].iov_base) + done;
      client->out.push_back({rest, parts[at].iov_len - done, nullptr});
      unsent += parts[at].iov_len - done;
    }
  }
  if (unsent > 0) Ask(*client);
  return unsent;
}

void NbdLoop::Pause(uint32_t id, bool is_paused) {
  const ClientPtr client = Find(id);
  if (!client) return;
  {
    std::lock_guard<std::mutex> lock(client->mutex);
    client->is_paused = is_paused;
  }
  Ask(*client);
}

void NbdLoop::End(uint32_t id) {
  const ClientPtr client = Find(id);
  if (!client) return;
  {
    std::lock_guard<std::mutex> lock(client->mutex);
    client->is_ending = true;
  }
  Ask(*client);
}

void NbdLoop::Destroy(uint32_t id) {
  const ClientPtr client = Find(id);
  if (!client) return;
  {
    std::lock_guard<std::mutex> lock(client->mutex);
    client->is_destroyed = true;
  }
  Ask(*client);
}

bool NbdLoop::TakeNews(NbdNews* news) {
  ClientPtr client;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (with_news_.empty()) return false;
    client = std::move(with_news_.front());
    with_news_.pop_front();
  }
  bool had_full_inbox;
  {
    std::lock_guard<std::mutex> lock(client->mutex);
    client->has_news = false;
    *news = client->news;
    client->news.bytes.clear();
    had_full_inbox = client->is_inbox_full;
    client->is_inbox_full = false;
  }
  if (news->is_closed) {
    std::lock_guard<std::mutex> lock(mutex_);
    clients_.erase(news->id);
    client_count_ = clients_.size();
  } else if (had_full_inbox) {
    Ask(*client);
  }
  return true;
}

// The event loop's word to the thread.
void NbdLoop::Ask(Client& client) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    to_attend_.push_back(client.shared_from_this());
  }
  eventfd_write(event_, 1);
}

// The thread's word to the event loop. The client's lock is held.
void NbdLoop::Tell(Client& client) {
  if (client.has_news) return;
  client.has_news = true;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    with_news_.push_back(client.shared_from_this());
  }
  wake_();
}

size_t NbdLoop::BatchBytesMax() const {
  const size_t share = kUnsentBytesMax / std::max<size_t>(1, client_count_.load(std::memory_order_relaxed));
  return std::clamp(share, kBatchBytesMin, kHitBytesMax);
}

void NbdLoop::Run() {
  pthread_setname_np(pthread_self(), "lazydisk-nbd");
  while (!is_stopping_) {
    const int status = Wait();
    if (status < 0 && errno != EINTR) break;
  }
  std::vector<ClientPtr> all;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [id, client] : clients_) all.push_back(client);
    to_attend_.clear();
  }
  for (const ClientPtr& client : all) Close(*client);
}

// Waits for events and serves them. To be woken costs more than a client takes that asks again at once, so it looks a
// little longer before it sleeps. A spin in vain makes the next ones rarer, up to one in a thousand waits.
int NbdLoop::Wait() {
  epoll_event events[kEventsMax];
  int count = 0;
  if (spin_rest_ == 0) {
    const auto until = Clock::now() + kSpin;
    do {
      count = epoll_wait(epoll_, events, kEventsMax, 0);
      if (count != 0) break;
      Relax();
    } while (Clock::now() < until);
    if (count > 0) {
      spin_pause_ = 1;
    } else if (count == 0) {
      spin_pause_ = std::min(spin_pause_ * 2, kSpinPauseMax);
      spin_rest_ = spin_pause_;
    }
  } else {
    spin_rest_--;
  }
  if (count == 0) {
    count = epoll_wait(epoll_, events, kEventsMax, -1);
  }
  for (int at = 0; at < count; at++) {
    Client* client = static_cast<Client*>(events[at].data.ptr);
    // SAFETY: a client that was closed for an event before this one is in closed_.
    if (!client) Attend();
    else if (events[at].events & (EPOLLHUP | EPOLLERR)) Close(*client);
    else Serve(*client);
  }
  closed_.clear();
  return count;
}

void NbdLoop::Attend() {
  eventfd_t ignored;
  eventfd_read(event_, &ignored);
  std::vector<ClientPtr> asked;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    asked.swap(to_attend_);
  }
  for (const ClientPtr& client : asked) Serve(*client);
}

void NbdLoop::Serve(Client& client) {
  if (client.fd < 0) return;
  const bool is_flushed = Flush(client);
  bool may_read, is_ending, is_over;
  {
    std::lock_guard<std::mutex> lock(client.mutex);
    if (is_flushed && client.is_ending && !client.is_write_shut) {
      client.is_write_shut = true;
      shutdown(client.fd, SHUT_WR);
    }
    is_ending = client.is_ending;
    is_over = client.is_destroyed || (client.is_write_shut && client.has_read_end);
    may_read = is_ending || (is_flushed && !client.is_paused && !client.is_inbox_full);
  }
  if (is_over) {
    Close(client);
    return;
  }
  if (may_read && !client.has_read_end) Read(client);
  if (client.fd >= 0) Watch(client);
}

// What is left of a client's bytes comes before what the socket has.
void NbdLoop::Read(Client& client) {
  size_t length = client.input.size();
  memcpy(buffer_.get(), client.input.data(), length);
  client.input.clear();
  bool is_ending;
  {
    std::lock_guard<std::mutex> lock(client.mutex);
    is_ending = client.is_ending;
  }
  const ssize_t received = Receive(client, length);
  if (received < 0 && errno != EAGAIN) {
    Close(client);
    return;
  }
  if (received == 0 && length < kBufferBytes) client.has_read_end = true;
  if (received > 0) length += static_cast<size_t>(received);
  const size_t taken = is_ending ? length : Take(client, buffer_.get(), length);
  if (client.fd < 0) return;
  client.input.assign(buffer_.get() + taken, buffer_.get() + length);
  if (!client.has_read_end) return;
  std::lock_guard<std::mutex> lock(client.mutex);
  client.news.is_ended = true;
  Tell(client);
  if (client.is_write_shut) client.is_destroyed = true;
}

// A client that had more requests in flight than have come gets a moment to send the others.
ssize_t NbdLoop::Receive(Client& client, size_t at) {
  const auto receive = [&](size_t to) {
    ssize_t count;
    do count = recv(client.fd, buffer_.get() + to, kBufferBytes - to, MSG_DONTWAIT);
    while (count < 0 && errno == EINTR);
    return count;
  };
  ssize_t received = at < kBufferBytes ? receive(at) : 0;
  if (received <= 0) return received;
  size_t depth = static_cast<size_t>(received) / kRequestBytes;
  if (client.depth > 2 && depth < client.depth) {
    const auto until = Clock::now() + kGather;
    while (depth < client.depth && Clock::now() < until) {
      const size_t to = at + static_cast<size_t>(received);
      const ssize_t more = to < kBufferBytes ? receive(to) : 0;
      if (more > 0) received += more;
      else if (more == 0 || errno != EAGAIN) break;
      else Relax();
      depth = static_cast<size_t>(received) / kRequestBytes;
    }
  }
  client.depth = depth >= client.depth ? depth : client.depth - (client.depth - depth + 3) / 4;
  return received;
}

// Answers or passes on requests; returns how many bytes were. What is left is the start of a request, or waits for room.
size_t NbdLoop::Take(Client& client, const uint8_t* bytes, size_t length) {
  HitBatch batch(BatchBytesMax());
  size_t at = 0;
  while (at < length) {
    if (client.is_lost || client.data_bytes > 0) {
      const size_t wanted = client.is_lost ? length - at : std::min(length - at, client.data_bytes);
      const size_t passed = PassOn(client, bytes + at, wanted);
      if (!client.is_lost) client.data_bytes -= passed;
      at += passed;
      if (passed < wanted) break;
      continue;
    }
    if (length - at < kRequestBytes) break;
    const NbdRequest request = ParseRequest(bytes + at);
    if (!request.is_valid) {
      client.is_lost = true;
      continue;
    }
    if (!batch.HasRoomFor(request) && !Send(client, batch)) break;
    if (client.map && batch.Add(bytes + at, request, client.map.get(), client.is_structured)) {
      at += kRequestBytes;
      continue;
    }
    if (PassOn(client, bytes + at, kRequestBytes) < kRequestBytes) break;
    at += kRequestBytes;
    if (request.type == kWrite) client.data_bytes = request.length;
  }
  Send(client, batch);
  return at;
}

// Into the inbox, as much as fits; of a request all or nothing.
size_t NbdLoop::PassOn(Client& client, const uint8_t* bytes, size_t length) {
  std::lock_guard<std::mutex> lock(client.mutex);
  const size_t room = kInboxBytesMax - client.news.bytes.size();
  const size_t count = length <= room ? length : (length == kRequestBytes ? 0 : room);
  client.is_inbox_full = count < length;
  client.news.bytes.insert(client.news.bytes.end(), bytes, bytes + count);
  Tell(client);
  return count;
}

// True if the kernel took it all. The rest is copied: a slow client must not hold slots.
bool NbdLoop::Send(Client& client, HitBatch& batch) {
  if (batch.is_empty()) return true;
  hit_reads_.fetch_add(batch.replies(), std::memory_order_relaxed);
  hit_bytes_.fetch_add(batch.read_bytes(), std::memory_order_relaxed);
  client.map->residency().reads.fetch_add(batch.replies(), std::memory_order_relaxed);
  client.map->reads.fetch_add(batch.replies(), std::memory_order_relaxed);
  client.map->read_bytes.fetch_add(batch.read_bytes(), std::memory_order_relaxed);
  std::lock_guard<std::mutex> lock(client.mutex);
  size_t sent = 0;
  if (client.out.empty()) {
    const ssize_t count = SendParts(client.fd, batch.parts(), batch.part_count());
    // An error is met again by whoever reads or flushes.
    if (count > 0) sent = static_cast<size_t>(count);
  }
  const size_t rest = batch.bytes() - sent;
  if (rest > 0) {
    Unsent unsent = {nullptr, rest, std::unique_ptr<uint8_t[]>(new uint8_t[rest])};
    uint8_t* to = unsent.copy.get();
    for (size_t part = 0; part < batch.part_count(); part++) {
      const auto [base, length] = batch.parts()[part];
      const size_t skipped = std::min(sent, length);
      sent -= skipped;
      memcpy(to, static_cast<const uint8_t*>(base) + skipped, length - skipped);
      to += length - skipped;
    }
    unsent.bytes = unsent.copy.get();
    client.out.push_back(std::move(unsent));
  }
  batch.Clear();
  return rest == 0;
}

// True if nothing is left to be sent.
bool NbdLoop::Flush(Client& client) {
  std::lock_guard<std::mutex> lock(client.mutex);
  while (!client.out.empty()) {
    iovec parts[kPartsMax];
    size_t count = 0;
    for (auto unsent = client.out.begin(); unsent != client.out.end() && count < kPartsMax; ++unsent) {
      parts[count++] = {const_cast<uint8_t*>(unsent->bytes), unsent->length};
    }
    ssize_t sent = SendParts(client.fd, parts, count);
    if (sent < 0) {
      if (errno != EAGAIN) client.is_destroyed = true;
      return false;
    }
    while (sent > 0) {
      Unsent& first = client.out.front();
      const size_t done = std::min(static_cast<size_t>(sent), first.length);
      first.bytes += done;
      first.length -= done;
      sent -= static_cast<ssize_t>(done);
      if (!first.copy) {
        client.news.taken_bytes += done;
        Tell(client);
      }
      if (first.length == 0) client.out.pop_front();
    }
  }
  return true;
}

void NbdLoop::Watch(Client& client) {
  uint32_t wanted = 0;
  {
    std::lock_guard<std::mutex> lock(client.mutex);
    if (client.is_destroyed || (client.is_write_shut && client.has_read_end)) {
      wanted = UINT32_MAX;
    } else {
      if (!client.out.empty()) wanted |= EPOLLOUT;
      const bool may_read = client.is_ending || (client.out.empty() && !client.is_paused && !client.is_inbox_full);
      if (may_read && !client.has_read_end) wanted |= EPOLLIN;
    }
  }
  if (wanted == UINT32_MAX) {
    Close(client);
    return;
  }
  if (wanted == client.watched) return;
  client.watched = wanted;
  epoll_event watch = {};
  watch.events = wanted;
  watch.data.ptr = &client;
  epoll_ctl(epoll_, EPOLL_CTL_MOD, client.fd, &watch);
}

void NbdLoop::Close(Client& client) {
  if (client.fd < 0) return;
  closed_.push_back(client.shared_from_this());
  std::lock_guard<std::mutex> lock(client.mutex);
  epoll_ctl(epoll_, EPOLL_CTL_DEL, client.fd, nullptr);
  close(client.fd);
  client.fd = -1;
  client.is_destroyed = true;
  client.out.clear();
  client.news.bytes.clear();
  client.news.is_closed = true;
  Tell(client);
}

}  // namespace lazydisk
