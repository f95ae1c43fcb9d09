// Stress for ThreadSanitizer: a Notifier pushes chunks while this thread, like the event loop, evicts and refills
// slots. What it writes is read from a socket in place of the kernel. Each chunk is filled with its number, so that a
// wrong byte is noticed. Prints "wrong N, pushed N, claims refused N, still pinned N".
#include <linux/fuse.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../../native/fuse-notify.h"

using namespace lazydisk;

namespace {

constexpr size_t kSlotBytes = 4096, kSlots = 8, kChunks = 64;
constexpr int kRounds = 20000;
constexpr uint64_t kNode = 7;

struct Message {
  fuse_out_header header;
  fuse_notify_store_out store;
  uint8_t bytes[kSlotBytes];
};

bool IsRight(const Message& message) {
  if (message.header.error != FUSE_NOTIFY_STORE || message.header.len != sizeof message || message.store.nodeid != kNode ||
      message.store.size != kSlotBytes) {
    return false;
  }
  // The chunk after the last is pushed as zeroes.
  const uint64_t chunk = message.store.offset / kSlotBytes;
  for (const uint8_t byte : message.bytes) {
    if (byte != (chunk == kChunks ? 0 : chunk + 1)) return false;
  }
  return true;
}

}  // namespace

int main() {
  static uint8_t slab[kSlotBytes * kSlots];
  const auto residency = std::make_shared<Residency>(slab, kSlotBytes, kSlots);
  const std::vector<uint8_t> stored((kChunks + 7) / 8, 0xff);
  const auto map = std::make_shared<HitMap>(residency, kChunks, stored.data());
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) != 0) abort();
  std::atomic<int> wrong{0};
  std::thread kernel([&] {
    static Message message;
    for (;;) {
      const ssize_t length = read(pair[0], &message, sizeof message);
      if (length <= 0) break;
      if (length != sizeof message || !IsRight(message)) wrong++;
    }
  });
  Notifier notifier;
  notifier.Start(pair[1]);
  unsigned seed = 5;
  int refused = 0;
  for (int round = 0; round < kRounds; round++) {
    const size_t chunk = rand_r(&seed) % kChunks, slot = rand_r(&seed) % kSlots;
    if (!residency->Claim(slot)) {
      refused++;
      continue;
    }
    memset(slab + slot * kSlotBytes, static_cast<int>(chunk + 1), kSlotBytes);
    map->Publish(chunk, slot);
    notifier.Push(kNode, chunk * kSlotBytes, kSlotBytes, map);
    if (round % 16 == 0) notifier.Push(kNode, kChunks * kSlotBytes, kSlotBytes, nullptr);
    if (round % 64 == 0) usleep(100);
  }
  notifier.Stop();
  while (!notifier.Stopped()) usleep(100);
  shutdown(pair[1], SHUT_RDWR);
  kernel.join();
  int pinned = 0;
  for (size_t slot = 0; slot < kSlots; slot++) pinned += residency->Claim(slot) ? 0 : 1;
  printf("wrong %d, pushed %d, claims refused %d, still pinned %d\n", wrong.load(),
         static_cast<int>(notifier.GetCounts().sent), refused, pinned);
}
