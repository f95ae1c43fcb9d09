// Stress for ThreadSanitizer: clients read through NbdLoop while this thread, like the event loop, evicts and refills
// slots and answers misses. Each chunk is filled with its number, so that a wrong byte is noticed. Prints "wrong N,
// hits N, claims refused N".
#include <endian.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../../native/nbd-loop.h"

using namespace lazydisk;

namespace {

constexpr size_t kSlotBytes = 4096, kSlots = 8, kChunks = 64;
constexpr int kClients = 4, kBursts = 1000, kBurstMax = 8;

// One chunk in eight is all zero: it is in no slot, and only the thread may answer reads of it.
bool IsZero(uint64_t chunk) { return chunk % 8 == 0; }

size_t HeaderBytes(bool is_structured) { return is_structured ? 28 : 16; }

void Check(bool is_fine, const char* what) {
  if (is_fine) return;
  perror(what);
  abort();
}

// Asks for chunks, several at once, each with its number as the cookie. Counts the answers with other content.
int64_t RunClient(int fd, unsigned seed, bool is_structured) {
  int64_t wrong = 0;
  for (int burst = 0; burst < kBursts; burst++) {
    const int count = 1 + rand_r(&seed) % kBurstMax;
    for (int n = 0; n < count; n++) {
      const uint64_t chunk = rand_r(&seed) % kChunks;
      const uint32_t magic = htobe32(0x25609513), length = htobe32(kSlotBytes);
      const uint64_t offset = htobe64(chunk * kSlotBytes);
      uint8_t request[kRequestBytes] = {};
      memcpy(request, &magic, sizeof magic);
      memcpy(request + 8, &chunk, sizeof chunk);
      memcpy(request + 16, &offset, sizeof offset);
      memcpy(request + 24, &length, sizeof length);
      Check(write(fd, request, sizeof request) == sizeof request, "write");
    }
    for (int n = 0; n < count; n++) {
      uint8_t reply[28 + kSlotBytes];
      const size_t header = HeaderBytes(is_structured);
      for (size_t got = 0; got < header + kSlotBytes;) {
        const ssize_t more = read(fd, reply + got, header + kSlotBytes - got);
        Check(more > 0, "read");
        got += static_cast<size_t>(more);
      }
      uint64_t chunk;
      memcpy(&chunk, reply + 8, sizeof chunk);
      for (size_t at = 0; at < kSlotBytes; at++) {
        if (reply[header + at] == (IsZero(chunk) ? 0 : chunk)) continue;
        wrong++;
        break;
      }
    }
  }
  return wrong;
}

}  // namespace

int main() {
  static uint8_t slab[kSlotBytes * kSlots];
  const auto residency = std::make_shared<Residency>(slab, kSlotBytes, kSlots);
  const std::vector<uint8_t> stored(kChunks / 8, 0xfe);
  const auto map = std::make_shared<HitMap>(residency, kChunks, stored.data());
  std::mutex mutex;
  std::condition_variable wake;
  bool is_woken = false;
  const auto wake_up = [&] {
    std::lock_guard<std::mutex> lock(mutex);
    is_woken = true;
    wake.notify_one();
  };
  NbdLoop loop(wake_up);
  Check(loop.Start(), "start");

  std::unordered_map<uint32_t, bool> is_structured;
  std::atomic<int> running{kClients};
  std::atomic<int64_t> wrong{0};
  std::vector<std::thread> clients;
  std::vector<int> sockets;
  for (int n = 0; n < kClients; n++) {
    int pair[2];
    Check(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0, "socketpair");
    fcntl(pair[1], F_SETFL, O_NONBLOCK);
    is_structured[loop.Add(pair[1], map, n % 2, nullptr, 0)] = n % 2;
    sockets.push_back(pair[0]);
  }
  for (int n = 0; n < kClients; n++) {
    clients.emplace_back([&, n] {
      wrong += RunClient(sockets[n], n + 1, n % 2);
      running--;
      wake_up();
    });
  }

  int slot_of[kChunks], chunk_in[kSlots];
  std::fill_n(slot_of, kChunks, -1);
  std::fill_n(chunk_in, kSlots, -1);
  unsigned seed = 99;
  int64_t refused = 0;
  // Answers must stay until they are taken; here, until the end.
  std::deque<std::vector<uint8_t>> answers;
  while (running > 0) {
    {
      std::unique_lock<std::mutex> lock(mutex);
      wake.wait(lock, [&] { return is_woken; });
      is_woken = false;
    }
    NbdNews news;
    while (loop.TakeNews(&news)) {
      for (size_t at = 0; at + kRequestBytes <= news.bytes.size(); at += kRequestBytes) {
        uint64_t chunk;
        memcpy(&chunk, &news.bytes[at + 8], sizeof chunk);
        if (IsZero(chunk)) wrong++;
        while (slot_of[chunk] < 0) {
          const int slot = rand_r(&seed) % kSlots;
          if (!residency->Claim(slot)) {
            refused++;
            continue;
          }
          if (chunk_in[slot] >= 0) slot_of[chunk_in[slot]] = -1;
          chunk_in[slot] = static_cast<int>(chunk);
          slot_of[chunk] = slot;
          memset(slab + slot * kSlotBytes, static_cast<int>(chunk), kSlotBytes);
        }
        map->Publish(chunk, slot_of[chunk]);
        const size_t header = HeaderBytes(is_structured[news.id]);
        std::vector<uint8_t>& answer = answers.emplace_back(header + kSlotBytes);
        memcpy(answer.data() + 8, &chunk, sizeof chunk);
        memset(answer.data() + header, static_cast<int>(chunk), kSlotBytes);
        const iovec part = {answer.data(), answer.size()};
        loop.Write(news.id, &part, 1);
      }
    }
  }
  for (std::thread& client : clients) client.join();
  loop.Stop();
  printf("wrong %ld, hits %ld, claims refused %ld\n", static_cast<long>(wrong), static_cast<long>(loop.hit_reads()),
         static_cast<long>(refused));
}
