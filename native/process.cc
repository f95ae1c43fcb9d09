// What a daemon needs of its process and Node does not have: a lock that dies with the process, a datagram to its
// service manager, and an exit that waits for no thread.
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>

#include "addon.h"

namespace lazydisk {
namespace {

// lockFile(fd): 0, or a positive errno.
napi_value LockFile(napi_env env, napi_callback_info info) {
  size_t count = 1;
  napi_value args[1];
  int32_t fd = -1;
  if (napi_get_cb_info(env, info, &count, args, nullptr, nullptr) != napi_ok || count != 1 ||
      napi_get_value_int32(env, args[0], &fd) != napi_ok) {
    return ThrowUsage(env, "lockFile(fd)");
  }
  return Int(env, flock(fd, LOCK_EX | LOCK_NB) == 0 ? 0 : errno);
}

// datagramSend(address, bytes): 0, or a positive errno. The address is a sun_path: a leading NUL means the abstract
// namespace.
napi_value DatagramSend(napi_env env, napi_callback_info info) {
  size_t count = 2;
  napi_value args[2];
  Bytes path, bytes;
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (napi_get_cb_info(env, info, &count, args, nullptr, nullptr) != napi_ok || count != 2 ||
      !GetBytes(env, args[0], &path) || !GetBytes(env, args[1], &bytes)) {
    return ThrowUsage(env, "datagramSend(address, bytes)");
  }
  if (path.length == 0 || path.length >= sizeof address.sun_path) return Int(env, ENAMETOOLONG);
  memcpy(address.sun_path, path.data, path.length);
  const int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return Int(env, errno);
  const socklen_t length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.length);
  const ssize_t sent = sendto(fd, bytes.data, bytes.length, MSG_DONTWAIT | MSG_NOSIGNAL,
                              reinterpret_cast<const sockaddr*>(&address), length);
  const int error = sent < 0 ? errno : 0;
  close(fd);
  return Int(env, error);
}

// exitNow(code): _exit(2).
napi_value ExitNow(napi_env env, napi_callback_info info) {
  size_t count = 1;
  napi_value args[1];
  int32_t code = 0;
  if (napi_get_cb_info(env, info, &count, args, nullptr, nullptr) != napi_ok || count != 1 ||
      napi_get_value_int32(env, args[0], &code) != napi_ok) {
    return ThrowUsage(env, "exitNow(code)");
  }
  _exit(code);
}

}  // namespace

void RegisterProcess(napi_env env, napi_value exports) {
  SetFunction(env, exports, "lockFile", LockFile);
  SetFunction(env, exports, "datagramSend", DatagramSend);
  SetFunction(env, exports, "exitNow", ExitNow);
}

}  // namespace lazydisk
