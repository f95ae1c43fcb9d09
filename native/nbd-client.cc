// See nbd-client.h.
#include "nbd-client.h"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

namespace lazydisk {

namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kPartsMax = 64;
// A client with several requests in flight sends them one by one; answering all at once saves both sides wake-ups.
constexpr auto kGather = std::chrono::microseconds(10);
// The most bytes of hits, for all clients together, that clients have asked for but not taken.
constexpr size_t kUnsentBytesMax = 16 * 1024 * 1024;
constexpr size_t kBatchBytesMin = 16 * 1024;
constexpr uint16_t kWrite = 1;

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

void NbdClient::Begin(uint32_t id, const uint8_t* head, size_t head_bytes) {
  news_.id = id;
  input_.assign(head, head + head_bytes);
}

size_t NbdClient::Write(const iovec* parts, size_t count) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (is_destroyed_ || is_write_shut_) return 0;
  size_t sent = 0, unsent = 0;
  if (out_.empty()) {
    // An error is left for the thread to find.
    sent = std::max<ssize_t>(0, SendParts(fd_, const_cast<iovec*>(parts), count));
  }
  for (size_t at = 0; at < count; at++) {
    const size_t done = std::min(sent, parts[at].iov_len);
    sent -= done;
    if (done == parts[at].iov_len) continue;
    const uint8_t* rest = static_cast<const uint8_t*>(parts[at].iov_base) + done;
    out_.push_back({rest, parts[at].iov_len - done, nullptr});
    unsent += parts[at].iov_len - done;
  }
  return unsent;
}

void NbdClient::Pause(bool is_paused) {
  std::lock_guard<std::mutex> lock(mutex_);
  is_paused_ = is_paused;
}

void NbdClient::End() {
  std::lock_guard<std::mutex> lock(mutex_);
  is_ending_ = true;
}

void NbdClient::Destroy() {
  std::lock_guard<std::mutex> lock(mutex_);
  is_destroyed_ = true;
}

bool NbdClient::TakeNews(NbdNews* news) {
  std::lock_guard<std::mutex> lock(mutex_);
  has_news_ = false;
  *news = news_;
  news_.bytes.clear();
  const bool was_full = is_inbox_full_;
  is_inbox_full_ = false;
  return was_full;
}

void NbdClient::Tell() {
  if (has_news_) return;
  has_news_ = true;
  tell_(*this);
}

size_t NbdClient::BatchBytesMax() const {
  const size_t share = kUnsentBytesMax / std::max<size_t>(1, shared_->clients.load(std::memory_order_relaxed));
  return std::clamp(share, kBatchBytesMin, kHitBytesMax);
}

int NbdClient::Serve(uint8_t* buffer) {
  const bool is_flushed = Flush();
  bool may_read, is_ending;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (is_flushed && is_ending_ && !is_write_shut_) {
      is_write_shut_ = true;
      shutdown(fd_, SHUT_WR);
    }
    is_ending = is_ending_;
    may_read = !is_destroyed_ && !has_read_end_ && (is_ending || (is_flushed && !is_paused_ && !is_inbox_full_));
  }
  if (may_read && !Read(buffer, is_ending)) return -1;
  std::lock_guard<std::mutex> lock(mutex_);
  if (is_destroyed_ || (is_write_shut_ && has_read_end_)) return -1;
  may_read = !has_read_end_ && (is_ending_ || (out_.empty() && !is_paused_ && !is_inbox_full_));
  int wanted = 0;
  if (!out_.empty()) wanted |= EPOLLOUT;
  if (may_read) wanted |= EPOLLIN;
  return wanted;
}

// Leftover bytes of the client come before what is in the socket. False if the socket has failed.
bool NbdClient::Read(uint8_t* buffer, bool is_ending) {
  size_t length = input_.size();
  memcpy(buffer, input_.data(), length);
  const ssize_t received = Receive(buffer, length);
  if (received < 0 && errno != EAGAIN) return false;
  if (received == 0 && length < kBufferBytes) has_read_end_ = true;
  if (received > 0) length += static_cast<size_t>(received);
  const size_t taken = is_ending ? length : Take(buffer, length);
  input_.assign(buffer + taken, buffer + length);
  if (!has_read_end_) return true;
  std::lock_guard<std::mutex> lock(mutex_);
  news_.is_ended = true;
  Tell();
  return true;
}

// A client that had more requests in flight than have arrived gets a moment to send the others.
ssize_t NbdClient::Receive(uint8_t* buffer, size_t at) {
  const auto receive = [&](size_t to) {
    ssize_t count;
    do count = recv(fd_, buffer + to, kBufferBytes - to, MSG_DONTWAIT);
    while (count < 0 && errno == EINTR);
    return count;
  };
  ssize_t received = at < kBufferBytes ? receive(at) : 0;
  if (received <= 0) return received;
  size_t depth = static_cast<size_t>(received) / kRequestBytes;
  if (depth_ > 2 && depth < depth_) {
    const auto until = Clock::now() + kGather;
    while (depth < depth_ && Clock::now() < until) {
      const size_t to = at + static_cast<size_t>(received);
      const ssize_t more = to < kBufferBytes ? receive(to) : 0;
      if (more > 0) received += more;
      else if (more == 0 || errno != EAGAIN) break;
      depth = static_cast<size_t>(received) / kRequestBytes;
    }
  }
  depth_ = depth >= depth_ ? depth : depth_ - (depth_ - depth + 3) / 4;
  return received;
}

// Answers requests or passes them on; returns how many bytes that used. The rest is an incomplete request, or waits for
// room.
size_t NbdClient::Take(const uint8_t* bytes, size_t length) {
  HitBatch batch(BatchBytesMax());
  size_t at = 0;
  while (at < length) {
    if (is_lost_ || data_bytes_ > 0) {
      const size_t wanted = is_lost_ ? length - at : std::min(length - at, data_bytes_);
      const size_t passed = PassOn(bytes + at, wanted);
      if (!is_lost_) data_bytes_ -= passed;
      at += passed;
      if (passed < wanted) break;
      continue;
    }
    if (length - at < kRequestBytes) break;
    const NbdRequest request = ParseRequest(bytes + at);
    if (!request.is_valid) {
      is_lost_ = true;
      continue;
    }
    if (!batch.HasRoomFor(request) && !Send(batch)) break;
    if (map_ && batch.Add(bytes + at, request, map_.get(), is_structured_)) {
      at += kRequestBytes;
      continue;
    }
    if (PassOn(bytes + at, kRequestBytes) < kRequestBytes) break;
    at += kRequestBytes;
    if (request.type == kWrite) data_bytes_ = request.length;
  }
  Send(batch);
  return at;
}

// Copies as much as fits into the inbox; a request all or nothing.
size_t NbdClient::PassOn(const uint8_t* bytes, size_t length) {
  std::lock_guard<std::mutex> lock(mutex_);
  const size_t room = kInboxBytesMax - news_.bytes.size();
  const size_t count = length <= room ? length : (length == kRequestBytes ? 0 : room);
  is_inbox_full_ = count < length;
  news_.bytes.insert(news_.bytes.end(), bytes, bytes + count);
  Tell();
  return count;
}

// True if the kernel took everything. The rest is copied, because a slow client must not hold slots.
bool NbdClient::Send(HitBatch& batch) {
  if (batch.is_empty()) return true;
  shared_->hit_reads.fetch_add(batch.replies(), std::memory_order_relaxed);
  shared_->hit_bytes.fetch_add(batch.read_bytes(), std::memory_order_relaxed);
  map_->residency().reads.fetch_add(batch.pin_count(), std::memory_order_relaxed);
  map_->reads.fetch_add(batch.replies(), std::memory_order_relaxed);
  map_->read_bytes.fetch_add(batch.read_bytes(), std::memory_order_relaxed);
  std::lock_guard<std::mutex> lock(mutex_);
  size_t sent = 0;
  if (out_.empty()) {
    const ssize_t count = SendParts(fd_, batch.parts(), batch.part_count());
    // An error shows again at the next read or flush.
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
    out_.push_back(std::move(unsent));
  }
  batch.Clear();
  return rest == 0;
}

// True if nothing is left to send.
bool NbdClient::Flush() {
  std::lock_guard<std::mutex> lock(mutex_);
  while (!out_.empty()) {
    iovec parts[kPartsMax];
    size_t count = 0;
    for (auto unsent = out_.begin(); unsent != out_.end() && count < kPartsMax; ++unsent) {
      parts[count++] = {const_cast<uint8_t*>(unsent->bytes), unsent->length};
    }
    ssize_t sent = SendParts(fd_, parts, count);
    if (sent < 0) {
      if (errno != EAGAIN) is_destroyed_ = true;
      return false;
    }
    while (sent > 0) {
      Unsent& first = out_.front();
      const size_t done = std::min(static_cast<size_t>(sent), first.length);
      first.bytes += done;
      first.length -= done;
      sent -= static_cast<ssize_t>(done);
      if (!first.copy) {
        news_.taken_bytes += done;
        Tell();
      }
      if (first.length == 0) out_.pop_front();
    }
  }
  return true;
}

void NbdClient::Close() {
  std::lock_guard<std::mutex> lock(mutex_);
  close(fd_);
  fd_ = -1;
  is_destroyed_ = true;
  out_.clear();
  news_.bytes.clear();
  news_.is_closed = true;
  Tell();
}

}  // namespace lazydisk
