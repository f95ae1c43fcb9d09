// One send(2) on a socket that libuv owns, without its request objects: what fits into the socket is sent at once.
#include <sys/socket.h>

#include <cerrno>

#include "addon.h"

namespace lazydisk {
namespace {

// socketSend(fd, bytes, lengthBytes): the number of bytes that the kernel took, or a negative errno.
napi_value SocketSend(napi_env env, napi_callback_info info) {
  size_t count = 3;
  napi_value args[3];
  int32_t fd = -1;
  uint32_t length = 0;
  Bytes bytes;
  if (napi_get_cb_info(env, info, &count, args, nullptr, nullptr) != napi_ok || count != 3 ||
      napi_get_value_int32(env, args[0], &fd) != napi_ok || !GetBytes(env, args[1], &bytes) ||
      napi_get_value_uint32(env, args[2], &length) != napi_ok || length > bytes.length) {
    return ThrowUsage(env, "socketSend(fd, bytes, lengthBytes)");
  }
  ssize_t sent;
  do sent = send(fd, bytes.data, length, MSG_DONTWAIT | MSG_NOSIGNAL);
  while (sent < 0 && errno == EINTR);
  return Int(env, sent < 0 ? -errno : static_cast<int>(sent));
}

}  // namespace

void RegisterSocketSend(napi_env env, napi_value exports) {
  SetFunction(env, exports, "socketSend", SocketSend);
}

}  // namespace lazydisk
