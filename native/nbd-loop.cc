// See nbd-loop.h.
#include "nbd-loop.h"

#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <system_error>

namespace lazydisk {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kEventsMax = 64;
// A client at depth 1 sends its next request within some ten microseconds; sleeping and waking takes longer than that.
constexpr auto kSpin = std::chrono::microseconds(20);
constexpr uint32_t kSpinPauseMax = 1024;

}  // namespace

NbdLoop::NbdLoop(std::function<void()> wake)
    : wake_(std::move(wake)), buffer_(new uint8_t[NbdClient::kBufferBytes]) {}

NbdLoop::~NbdLoop() { Stop(); }

bool NbdLoop::Start() {
  epoll_ = epoll_create1(EPOLL_CLOEXEC);
  event_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  epoll_event watch = {};
  watch.events = EPOLLIN;
  watch.data.ptr = nullptr;
  if (epoll_ < 0 || event_ < 0 || epoll_ctl(epoll_, EPOLL_CTL_ADD, event_, &watch) < 0) return false;
  // Signals belong to Node's own threads.
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
  const auto tell = [this](NbdClient& client) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      with_news_.push_back(client.shared_from_this());
    }
    wake_();
  };
  const auto client = std::make_shared<NbdClient>(fd, std::move(map), is_structured, &shared_, tell);
  std::unique_lock<std::mutex> lock(mutex_);
  while (++last_id_ == 0 || clients_.count(last_id_)) continue;
  const uint32_t id = last_id_;
  client->Begin(id, head, head_bytes);
  epoll_event watch = {};
  watch.data.ptr = client.get();
  if (epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &watch) < 0) return 0;
  clients_[id] = client;
  shared_.clients = clients_.size();
  lock.unlock();
  Ask(client);
  return id;
}

NbdLoop::ClientPtr NbdLoop::Find(uint32_t id) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = clients_.find(id);
  return found == clients_.end() ? nullptr : found->second;
}

size_t NbdLoop::Write(uint32_t id, const iovec* parts, size_t count) {
  const ClientPtr client = Find(id);
  const size_t unsent = client ? client->Write(parts, count) : 0;
  if (unsent > 0) Ask(client);
  return unsent;
}

void NbdLoop::Pause(uint32_t id, bool is_paused) {
  const ClientPtr client = Find(id);
  if (!client) return;
  client->Pause(is_paused);
  Ask(client);
}

void NbdLoop::End(uint32_t id) {
  const ClientPtr client = Find(id);
  if (!client) return;
  client->End();
  Ask(client);
}

void NbdLoop::Destroy(uint32_t id) {
  const ClientPtr client = Find(id);
  if (!client) return;
  client->Destroy();
  Ask(client);
}

bool NbdLoop::TakeNews(NbdNews* news) {
  ClientPtr client;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (with_news_.empty()) return false;
    client = std::move(with_news_.front());
    with_news_.pop_front();
  }
  const bool is_waited_for = client->TakeNews(news);
  if (news->is_closed) {
    std::lock_guard<std::mutex> lock(mutex_);
    clients_.erase(news->id);
    shared_.clients = clients_.size();
  } else if (is_waited_for) {
    Ask(client);
  }
  return true;
}

// Asks the thread, from the event loop, to attend to a client.
void NbdLoop::Ask(const ClientPtr& client) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    to_attend_.push_back(client);
  }
  eventfd_write(event_, 1);
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

// Waits for events and serves them. A wake-up costs more time than a client needs to send its next request, so it polls
// a little longer before it sleeps. A spin in vain makes the next ones rarer, down to one in a thousand waits.
int NbdLoop::Wait() {
  epoll_event events[kEventsMax];
  int count = 0;
  if (spin_rest_ == 0) {
    const auto until = Clock::now() + kSpin;
    do {
      count = epoll_wait(epoll_, events, kEventsMax, 0);
      if (count != 0) break;
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
  if (count == 0) count = epoll_wait(epoll_, events, kEventsMax, -1);
  for (int at = 0; at < count; at++) {
    NbdClient* client = static_cast<NbdClient*>(events[at].data.ptr);
    // SAFETY: a client that was closed for an earlier event is in closed_.
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

void NbdLoop::Serve(NbdClient& client) {
  if (client.fd() < 0) return;
  const int wanted = client.Serve(buffer_.get());
  if (wanted < 0) {
    Close(client);
    return;
  }
  if (static_cast<uint32_t>(wanted) == client.watched) return;
  client.watched = static_cast<uint32_t>(wanted);
  epoll_event watch = {};
  watch.events = client.watched;
  watch.data.ptr = &client;
  epoll_ctl(epoll_, EPOLL_CTL_MOD, client.fd(), &watch);
}

void NbdLoop::Close(NbdClient& client) {
  if (client.fd() < 0) return;
  closed_.push_back(client.shared_from_this());
  epoll_ctl(epoll_, EPOLL_CTL_DEL, client.fd(), nullptr);
  client.Close();
}

}  // namespace lazydisk
