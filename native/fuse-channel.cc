// The connection between /dev/fuse and JavaScript. It batches on Node's own loop: one wake-up reads every waiting
// request into one buffer and calls JavaScript once; each reply is one writev straight from the caller's memory. A
// dedicated thread pushes chunks (fuse-notify.h), and the loop never waits for it.
#include <fcntl.h>
#include <linux/fuse.h>
#include <sys/uio.h>
#include <unistd.h>
#include <uv.h>

#include <cerrno>
#include <cstring>

#include "addon.h"
#include "fuse-notify.h"
#include "handle.h"

namespace lazydisk {
namespace {

// The kernel refuses to read a request into a smaller buffer; without writes, every request fits into it.
constexpr size_t kRequestBytesMax = FUSE_MIN_READ_BUFFER;
// Limits for one wake-up, so that other work on the loop gets its turn: requests read before JavaScript is called,
// calls, and bytes that the requests ask for (an answer from memory is copied at once). The last request may exceed the
// bytes.
constexpr int kBatchMax = 64;
constexpr int kRoundsMax = 4;
constexpr size_t kAskedBytesMax = 1024 * 1024;
constexpr size_t kPartsMax = 1023;  // and a header: IOV_MAX
constexpr uint64_t kClosingTickMs = 1;

struct Channel {
  napi_env env = nullptr;
  int fd = -1;
  uv_poll_t poll;
  // Runs while closing, to check whether the notifier has finished: it cannot wake the loop.
  uv_timer_t closing_timer;
  int handles_open = 0;
  uint8_t* requests = nullptr;
  size_t requests_length = 0;
  napi_async_context context = nullptr;
  napi_ref self = nullptr;
  napi_ref requests_array = nullptr;
  napi_ref on_requests = nullptr;
  napi_ref on_lost = nullptr;
  napi_ref on_closed = nullptr;
  bool closing = false;
  iovec iov[kPartsMax + 1];
  Notifier notifier;
};

napi_value CallBack(Channel* channel, napi_ref function_ref, size_t count, napi_value* args) {
  napi_value function, global, result = nullptr;
  if (napi_get_reference_value(channel->env, function_ref, &function) != napi_ok) return nullptr;
  napi_get_global(channel->env, &global);
  const napi_status status =
      napi_make_callback(channel->env, channel->context, global, function, count, args, &result);
  if (status == napi_pending_exception) {
    napi_value error;
    napi_get_and_clear_last_exception(channel->env, &error);
    napi_fatal_exception(channel->env, error);
  }
  return result;
}

void Lost(Channel* channel, int error) {
  uv_poll_stop(&channel->poll);
  napi_value argument;
  if (napi_create_int32(channel->env, error, &argument) == napi_ok) {
    CallBack(channel, channel->on_lost, 1, &argument);
  }
}

// The size of the data that the answer to a request will contain.
size_t AskedBytes(const fuse_in_header& header, const uint8_t* body) {
  if (header.opcode != FUSE_READ || header.len < sizeof header + sizeof(fuse_read_in)) return 0;
  fuse_read_in read_in;
  memcpy(&read_in, body, sizeof read_in);
  return read_in.size;
}

// Reads waiting requests, each on an 8-byte boundary: at most kBatchMax, until `asked` reaches kAskedBytesMax. Returns
// 0, or the errno that ended it.
int ReadBatch(Channel* channel, size_t* used, size_t* asked) {
  *used = 0;
  for (int count = 0; count < kBatchMax && *asked < kAskedBytesMax &&
                      *used + kRequestBytesMax <= channel->requests_length;) {
    uint8_t* at = channel->requests + *used;
    const ssize_t length = read(channel->fd, at, kRequestBytesMax);
    if (length < 0) {
      if (errno == EINTR || errno == ENOENT) continue;  // ENOENT: this request was withdrawn in the meantime
      return errno;
    }
    fuse_in_header header;
    if (static_cast<size_t>(length) < sizeof header) return EPROTO;
    memcpy(&header, at, sizeof header);
    if (header.len != static_cast<size_t>(length)) return EPROTO;
    *asked += AskedBytes(header, at + sizeof header);
    *used += (static_cast<size_t>(length) + 7) & ~size_t{7};
    count++;
  }
  return 0;
}

void OnReadable(uv_poll_t* handle, int status, int) {
  Channel* channel = static_cast<Channel*>(handle->data);
  napi_handle_scope scope;
  if (napi_open_handle_scope(channel->env, &scope) != napi_ok) return;
  if (status < 0) {
    Lost(channel, -status);
  } else {
    size_t asked = 0;
    for (int round = 0; round < kRoundsMax && asked < kAskedBytesMax && channel->fd >= 0; round++) {
      size_t used;
      const int error = ReadBatch(channel, &used, &asked);
      if (used > 0) {
        napi_value argument;
        if (napi_create_uint32(channel->env, static_cast<uint32_t>(used), &argument) != napi_ok) break;
        CallBack(channel, channel->on_requests, 1, &argument);
      }
      if (error != 0 && error != EAGAIN) {
        Lost(channel, error);
        break;
      }
      if (used == 0) break;
    }
  }
  napi_close_handle_scope(channel->env, scope);
}

void OnTeardown(void* data);

void OnHandleClosed(uv_handle_t* handle) {
  Channel* channel = static_cast<Channel*>(handle->data);
  if (--channel->handles_open > 0) return;
  napi_handle_scope scope;
  if (napi_open_handle_scope(channel->env, &scope) != napi_ok) return;
  napi_remove_env_cleanup_hook(channel->env, OnTeardown, channel);
  CallBack(channel, channel->on_closed, 0, nullptr);
  for (napi_ref ref : {channel->requests_array, channel->on_requests, channel->on_lost, channel->on_closed}) {
    napi_delete_reference(channel->env, ref);
  }
  napi_async_destroy(channel->env, channel->context);
  // This is the last reference: from here on the garbage collector may finalise the channel.
  napi_delete_reference(channel->env, channel->self);
  napi_close_handle_scope(channel->env, scope);
}

void OnClosingTick(uv_timer_t* handle) {
  Channel* channel = static_cast<Channel*>(handle->data);
  if (!channel->notifier.Stopped()) return;
  uv_poll_stop(&channel->poll);
  uv_close(reinterpret_cast<uv_handle_t*>(&channel->poll), OnHandleClosed);
  uv_close(reinterpret_cast<uv_handle_t*>(&channel->closing_timer), OnHandleClosed);
  close(channel->fd);
  channel->fd = -1;
}

// Node exits with the channel open. The thread may be blocked in the kernel, so it is not joined: it and the channel
// are left until the process exits. A write in progress still reads the slab, which JavaScript owns; a process that
// exits like this (process.exit, an uncaught error) frees its heap only with its threads.
void OnTeardown(void* data) {
  Channel* channel = static_cast<Channel*>(data);
  if (channel->fd < 0) return;
  channel->notifier.Stop();
  uv_poll_stop(&channel->poll);
  close(channel->fd);
  channel->fd = -1;
}

void Finalize(napi_env, void* data, void*) {
  Channel* channel = static_cast<Channel*>(data);
  // SAFETY: a thread that was not joined (see OnTeardown) still uses the notifier; the process is exiting.
  if (!channel->notifier.running()) delete channel;
}

Channel* ChannelOf(napi_env env, napi_value value) {
  void* data = nullptr;
  return napi_get_value_external(env, value, &data) == napi_ok ? static_cast<Channel*>(data) : nullptr;
}

// Fills iov from index 1 with a Uint8Array or an array of them. False for anything else or for too many.
bool GetParts(napi_env env, napi_value value, Channel* channel, int* count, size_t* total) {
  *count = 1;
  *total = 0;
  Bytes bytes;
  if (GetBytes(env, value, &bytes)) {
    channel->iov[1] = {bytes.data, bytes.length};
    *count = 2;
    *total = bytes.length;
    return true;
  }
  uint32_t length = 0;
  if (napi_get_array_length(env, value, &length) != napi_ok || length > kPartsMax) return false;
  for (uint32_t index = 0; index < length; index++) {
    napi_value element;
    if (napi_get_element(env, value, index, &element) != napi_ok || !GetBytes(env, element, &bytes)) return false;
    channel->iov[(*count)++] = {bytes.data, bytes.length};
    *total += bytes.length;
  }
  return true;
}

napi_value FuseReply(napi_env env, napi_callback_info info) {
  size_t count = 4;
  napi_value args[4];
  if (napi_get_cb_info(env, info, &count, args, nullptr, nullptr) != napi_ok) return nullptr;
  Channel* channel = count == 4 ? ChannelOf(env, args[0]) : nullptr;
  int64_t unique = 0;
  int32_t error = 0;
  int parts = 1;
  size_t total = 0;
  if (!channel || napi_get_value_int64(env, args[1], &unique) != napi_ok ||
      napi_get_value_int32(env, args[2], &error) != napi_ok ||
      !GetParts(env, args[3], channel, &parts, &total) || total > UINT32_MAX / 2) {
    return ThrowUsage(env, "fuseReply(channel, unique, errno, parts)");
  }
  if (channel->fd < 0) return Int(env, EBADF);
  fuse_out_header header;
  header.len = static_cast<uint32_t>(sizeof header + total);
  header.error = -error;
  header.unique = static_cast<uint64_t>(unique);
  channel->iov[0] = {&header, sizeof header};
  ssize_t written;
  do {
    written = writev(channel->fd, channel->iov, parts);
  } while (written < 0 && errno == EINTR);
  return Int(env, written < 0 ? errno : 0);
}

napi_value FusePush(napi_env env, napi_callback_info info) {
  Arguments<5> args(env, info);
  Channel* channel = args.ok() ? ChannelOf(env, args[0]) : nullptr;
  int64_t node_id = 0, offset = 0;
  uint32_t length = 0;
  napi_valuetype type = napi_null;
  if (args.ok()) napi_typeof(env, args[4], &type);
  auto map = type == napi_external ? HandleOf<HitMap>(env, args[4]) : nullptr;
  if (!channel || !args.GetInt64(1, &node_id) || !args.GetInt64(2, &offset) || offset < 0 ||
      !args.GetUint32(3, &length) || length == 0 || length > Notifier::kBytesMax || (!map && type != napi_undefined)) {
    return ThrowUsage(env, "fusePush(channel, nodeId, offset, lengthBytes, hitMap or undefined)");
  }
  return Bool(env, channel->fd >= 0 && channel->notifier.Push(static_cast<uint64_t>(node_id),
                                                              static_cast<uint64_t>(offset), length, std::move(map)));
}

napi_value FusePushed(napi_env env, napi_callback_info info) {
  Arguments<1> args(env, info);
  Channel* channel = args.ok() ? ChannelOf(env, args[0]) : nullptr;
  if (!channel) return ThrowUsage(env, "fusePushed(channel)");
  const auto [sent, failed, waiting] = channel->notifier.GetCounts();
  return Doubles(env, {static_cast<double>(sent), static_cast<double>(failed), static_cast<double>(waiting)});
}

napi_value FuseClose(napi_env env, napi_callback_info info) {
  size_t count = 2;
  napi_value args[2];
  if (napi_get_cb_info(env, info, &count, args, nullptr, nullptr) != napi_ok) return nullptr;
  Channel* channel = count == 2 ? ChannelOf(env, args[0]) : nullptr;
  napi_valuetype type = napi_undefined;
  if (!channel || napi_typeof(env, args[1], &type) != napi_ok || type != napi_function || channel->closing ||
      channel->fd < 0) {
    return ThrowUsage(env, "fuseClose(channel, callback), once");
  }
  channel->closing = true;
  napi_create_reference(env, args[1], 1, &channel->on_closed);
  channel->notifier.Stop();
  uv_timer_start(&channel->closing_timer, OnClosingTick, 0, kClosingTickMs);
  return nullptr;
}

napi_value FuseOpen(napi_env env, napi_callback_info info) {
  size_t count = 4;
  napi_value args[4];
  if (napi_get_cb_info(env, info, &count, args, nullptr, nullptr) != napi_ok) return nullptr;
  int32_t fd = -1;
  Bytes requests;
  napi_valuetype type_requests = napi_undefined, type_lost = napi_undefined;
  if (count == 4) {
    napi_typeof(env, args[2], &type_requests);
    napi_typeof(env, args[3], &type_lost);
  }
  if (count != 4 || napi_get_value_int32(env, args[0], &fd) != napi_ok || fd < 3 ||
      !GetBytes(env, args[1], &requests) || requests.length < kRequestBytesMax ||
      reinterpret_cast<uintptr_t>(requests.data) % 8 != 0 || type_requests != napi_function ||
      type_lost != napi_function) {
    return ThrowUsage(env, "fuseOpen(fd, requests: Uint8Array of 8 KiB or more, onRequests, onLost)");
  }
  uv_loop_t* loop = nullptr;
  Channel* channel = new Channel;
  channel->env = env;
  channel->fd = fd;
  channel->requests = requests.data;
  channel->requests_length = requests.length;
  channel->poll.data = channel->closing_timer.data = channel;
  if (napi_get_uv_event_loop(env, &loop) != napi_ok || uv_poll_init(loop, &channel->poll, fd) != 0) {
    delete channel;
    napi_throw_error(env, nullptr, "fuseOpen: the descriptor cannot be polled");
    return nullptr;
  }
  uv_timer_init(loop, &channel->closing_timer);
  channel->handles_open = 2;
  napi_value external = nullptr, name = nullptr;
  napi_create_external(env, channel, Finalize, nullptr, &external);
  napi_create_reference(env, external, 1, &channel->self);
  napi_create_reference(env, args[1], 1, &channel->requests_array);
  napi_create_reference(env, args[2], 1, &channel->on_requests);
  napi_create_reference(env, args[3], 1, &channel->on_lost);
  napi_create_string_utf8(env, "lazydisk:fuse", NAPI_AUTO_LENGTH, &name);
  napi_async_init(env, nullptr, name, &channel->context);
  napi_add_env_cleanup_hook(env, OnTeardown, channel);
  channel->notifier.Start(fd);
  uv_poll_start(&channel->poll, UV_READABLE, OnReadable);
  return external;
}

}  // namespace

void RegisterFuseChannel(napi_env env, napi_value exports) {
  SetFunction(env, exports, "fuseOpen", FuseOpen);
  SetFunction(env, exports, "fuseReply", FuseReply);
  SetFunction(env, exports, "fusePush", FusePush);
  SetFunction(env, exports, "fusePushed", FusePushed);
  SetFunction(env, exports, "fuseClose", FuseClose);
}

}  // namespace lazydisk
