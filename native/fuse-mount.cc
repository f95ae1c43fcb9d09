// Mounting: the two system calls that Node does not have, and receiving a descriptor from fusermount3, which mounts for
// unprivileged users. Unmounting runs on the thread pool, because the kernel may wait in it for reads that our own loop
// has to answer.
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "addon.h"

namespace lazydisk {
namespace {

constexpr size_t kPathBytesMax = 4096;

bool GetText(napi_env env, napi_value value, std::string* text) {
  char buffer[kPathBytesMax + 1];
  size_t length = 0;
  if (napi_get_value_string_utf8(env, value, buffer, sizeof buffer, &length) != napi_ok) return false;
  // A text that fills the buffer was truncated; a NUL would truncate it in the kernel.
  if (length >= kPathBytesMax || memchr(buffer, 0, length)) return false;
  text->assign(buffer, length);
  return true;
}

napi_value FuseMount(napi_env env, napi_callback_info info) {
  size_t count = 4;
  napi_value args[4];
  if (napi_get_cb_info(env, info, &count, args, nullptr, nullptr) != napi_ok) return nullptr;
  std::string source, dir, type, options;
  if (count != 4 || !GetText(env, args[0], &source) || !GetText(env, args[1], &dir) ||
      !GetText(env, args[2], &type) || !GetText(env, args[3], &options)) {
    return ThrowUsage(env, "fuseMount(source, dir, type, options)");
  }
  const int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return Int(env, -errno);
  const std::string data = "fd=" + std::to_string(fd) + "," + options;
  const unsigned long flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME;
  if (mount(source.c_str(), dir.c_str(), type.c_str(), flags, data.c_str()) != 0) {
    const int error = errno;
    close(fd);
    return Int(env, -error);
  }
  return Int(env, fd);
}

struct UnmountJob {
  napi_async_work work = nullptr;
  napi_ref callback = nullptr;
  std::string dir;
  bool abort = false;
  int error = 0;
};

void UnmountExecute(napi_env, void* data) {
  UnmountJob* job = static_cast<UnmountJob*>(data);
  const int flags = MNT_DETACH | UMOUNT_NOFOLLOW | (job->abort ? MNT_FORCE : 0);
  if (umount2(job->dir.c_str(), flags) != 0) job->error = errno;
}

void UnmountDestroy(napi_env env, UnmountJob* job) {
  if (job->callback) napi_delete_reference(env, job->callback);
  if (job->work) napi_delete_async_work(env, job->work);
  delete job;
}

void UnmountComplete(napi_env env, napi_status status, void* data) {
  UnmountJob* job = static_cast<UnmountJob*>(data);
  napi_value callback, global, error;
  const bool call = status == napi_ok && napi_get_reference_value(env, job->callback, &callback) == napi_ok &&
                    napi_get_global(env, &global) == napi_ok &&
                    napi_create_int32(env, job->error, &error) == napi_ok;
  UnmountDestroy(env, job);
  if (call) napi_call_function(env, global, callback, 1, &error, nullptr);
}

napi_value FuseUnmount(napi_env env, napi_callback_info info) {
  size_t count = 3;
  napi_value args[3];
  if (napi_get_cb_info(env, info, &count, args, nullptr, nullptr) != napi_ok) return nullptr;
  UnmountJob* job = new UnmountJob;
  napi_valuetype type = napi_undefined;
  if (count != 3 || !GetText(env, args[0], &job->dir) ||
      napi_get_value_bool(env, args[1], &job->abort) != napi_ok ||
      napi_typeof(env, args[2], &type) != napi_ok || type != napi_function) {
    delete job;
    return ThrowUsage(env, "fuseUnmount(dir, abort, callback)");
  }
  napi_value name;
  if (napi_create_reference(env, args[2], 1, &job->callback) != napi_ok ||
      napi_create_string_utf8(env, "lazydisk:unmount", NAPI_AUTO_LENGTH, &name) != napi_ok ||
      napi_create_async_work(env, nullptr, name, UnmountExecute, UnmountComplete, job, &job->work) != napi_ok ||
      napi_queue_async_work(env, job->work) != napi_ok) {
    UnmountDestroy(env, job);
    napi_throw_error(env, nullptr, "fuseUnmount: cannot queue the job");
  }
  return nullptr;
}

napi_value SocketPair(napi_env env, napi_callback_info) {
  int fds[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) {
    napi_throw_error(env, nullptr, strerror(errno));
    return nullptr;
  }
  napi_value result = nullptr;
  napi_create_array_with_length(env, 2, &result);
  for (uint32_t index = 0; index < 2; index++) napi_set_element(env, result, index, Int(env, fds[index]));
  return result;
}

napi_value ReceiveFd(napi_env env, napi_callback_info info) {
  size_t count = 1;
  napi_value args[1];
  if (napi_get_cb_info(env, info, &count, args, nullptr, nullptr) != napi_ok) return nullptr;
  int32_t socket = -1;
  if (count != 1 || napi_get_value_int32(env, args[0], &socket) != napi_ok) {
    return ThrowUsage(env, "receiveFd(socket)");
  }
  char byte;
  iovec iov = {&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &iov;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  const ssize_t received = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (received < 0) return Int(env, -errno);
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (!header || header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS ||
      header->cmsg_len != CMSG_LEN(sizeof(int))) {
    return Int(env, -EPROTO);
  }
  int fd;
  memcpy(&fd, CMSG_DATA(header), sizeof fd);
  return Int(env, fd);
}

}  // namespace

void RegisterFuseMount(napi_env env, napi_value exports) {
  SetFunction(env, exports, "fuseMount", FuseMount);
  SetFunction(env, exports, "fuseUnmount", FuseUnmount);
  SetFunction(env, exports, "socketPair", SocketPair);
  SetFunction(env, exports, "receiveFd", ReceiveFd);
}

}  // namespace lazydisk
