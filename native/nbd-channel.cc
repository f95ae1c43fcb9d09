// NbdLoop (nbd-loop.h) for JavaScript: one handle for the loop, a number for each client. News arrives in one call for
// all clients that have any, packed into a buffer of the caller.
#include <fcntl.h>
#include <unistd.h>
#include <uv.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "addon.h"
#include "handle.h"
#include "nbd-loop.h"

namespace lazydisk {
namespace {

constexpr size_t kPartsMax = 1023;

// A record of the news buffer; `length` bytes follow it, and it begins on an 8-byte boundary.
struct NewsHeader {
  uint32_t id;
  uint32_t length;
  uint32_t taken_bytes;
  uint32_t flags;
};
constexpr uint32_t kFlagEnded = 1;
constexpr uint32_t kFlagClosed = 2;
constexpr size_t kNewsBytesMin = 2 * (sizeof(NewsHeader) + NbdClient::kInboxBytesMax);

struct Server {
  napi_env env = nullptr;
  uv_async_t async;
  std::unique_ptr<NbdLoop> loop;
  uint8_t* news = nullptr;
  size_t news_length = 0;
  napi_async_context context = nullptr;
  napi_ref news_array = nullptr;
  napi_ref on_news = nullptr;
  // Keeps the server alive until the async handle is closed.
  std::shared_ptr<Server> self;
  size_t clients = 0;
  bool is_closed = false;
};

void CountClients(Server* server, int change) {
  server->clients += change;
  uv_handle_t* handle = reinterpret_cast<uv_handle_t*>(&server->async);
  if (server->clients > 0) uv_ref(handle);
  else uv_unref(handle);
}

void CallBack(Server* server, size_t length) {
  napi_value function, global, argument, result;
  if (napi_get_reference_value(server->env, server->on_news, &function) != napi_ok ||
      napi_get_global(server->env, &global) != napi_ok ||
      napi_create_uint32(server->env, static_cast<uint32_t>(length), &argument) != napi_ok) {
    return;
  }
  if (napi_make_callback(server->env, server->context, global, function, 1, &argument, &result) ==
      napi_pending_exception) {
    napi_value error;
    napi_get_and_clear_last_exception(server->env, &error);
    napi_fatal_exception(server->env, error);
  }
}

void TellNews(Server* server) {
  napi_handle_scope scope;
  if (napi_open_handle_scope(server->env, &scope) != napi_ok) return;
  size_t used = 0;
  NbdNews news;
  while (server->loop->TakeNews(&news)) {
    const NewsHeader header = {news.id, static_cast<uint32_t>(news.bytes.size()),
                               static_cast<uint32_t>(news.taken_bytes),
                               (news.is_ended ? kFlagEnded : 0) | (news.is_closed ? kFlagClosed : 0)};
    if (news.is_closed && !server->is_closed) CountClients(server, -1);
    if (used + sizeof header + news.bytes.size() > server->news_length) {
      CallBack(server, used);
      used = 0;
    }
    // SAFETY: an inbox holds at most kInboxBytesMax, and the buffer has room for two.
    memcpy(server->news + used, &header, sizeof header);
    memcpy(server->news + used + sizeof header, news.bytes.data(), news.bytes.size());
    used += (sizeof header + news.bytes.size() + 7) & ~size_t{7};
  }
  if (used > 0) CallBack(server, used);
  napi_close_handle_scope(server->env, scope);
}

void OnTeardown(void* data);

// Ends the thread, delivers the last news, and releases everything.
void CloseServer(Server* server) {
  if (server->is_closed) return;
  server->is_closed = true;
  server->loop->Stop();
  napi_remove_env_cleanup_hook(server->env, OnTeardown, server);
  uv_close(reinterpret_cast<uv_handle_t*>(&server->async), [](uv_handle_t* handle) {
    static_cast<Server*>(handle->data)->self.reset();
  });
}

// Node exits with the loop running.
void OnTeardown(void* data) {
  Server* server = static_cast<Server*>(data);
  server->loop->Stop();
}

napi_value NbdOpen(napi_env env, napi_callback_info info) {
  Arguments<2> args(env, info);
  Bytes news;
  if (!args.ok() || !args.GetBytes(0, &news) || news.length < kNewsBytesMin ||
      reinterpret_cast<uintptr_t>(news.data) % 8 != 0 || !args.IsFunction(1)) {
    return ThrowUsage(env, "nbdOpen(news: Uint8Array of 132 KiB or more, onNews)");
  }
  uv_loop_t* uv = nullptr;
  auto server = std::make_shared<Server>();
  server->env = env;
  server->news = news.data;
  server->news_length = news.length;
  server->async.data = server.get();
  const auto on_async = [](uv_async_t* handle) { TellNews(static_cast<Server*>(handle->data)); };
  if (napi_get_uv_event_loop(env, &uv) != napi_ok || uv_async_init(uv, &server->async, on_async) != 0) {
    napi_throw_error(env, nullptr, "nbdOpen: no handle in the event loop");
    return nullptr;
  }
  // Clients keep the process alive, as sockets do; a server without clients does not.
  uv_unref(reinterpret_cast<uv_handle_t*>(&server->async));
  server->self = server;
  server->loop = std::make_unique<NbdLoop>([async = &server->async] { uv_async_send(async); });
  napi_value name = nullptr;
  napi_create_string_utf8(env, "lazydisk:nbd", NAPI_AUTO_LENGTH, &name);
  napi_async_init(env, nullptr, name, &server->context);
  napi_create_reference(env, args[0], 1, &server->news_array);
  napi_create_reference(env, args[1], 1, &server->on_news);
  napi_add_env_cleanup_hook(env, OnTeardown, server.get());
  if (!server->loop->Start()) {
    const std::string why = std::string("nbdOpen: ") + strerror(errno);
    CloseServer(server.get());
    napi_throw_error(env, nullptr, why.c_str());
    return nullptr;
  }
  return NewHandle(env, std::move(server));
}

napi_value NbdClose(napi_env env, napi_callback_info info) {
  Arguments<1> args(env, info);
  auto server = args.ok() ? HandleOf<Server>(env, args[0]) : nullptr;
  if (!server || server->is_closed) return ThrowUsage(env, "nbdClose(loop), once");
  CloseServer(server.get());
  TellNews(server.get());
  napi_delete_reference(env, server->news_array);
  napi_delete_reference(env, server->on_news);
  napi_async_destroy(env, server->context);
  return nullptr;
}

napi_value NbdServe(napi_env env, napi_callback_info info) {
  Arguments<5> args(env, info);
  auto server = args.ok() ? HandleOf<Server>(env, args[0]) : nullptr;
  int32_t fd = -1;
  bool is_structured = false;
  Bytes head;
  napi_valuetype type = napi_undefined;
  if (args.ok()) napi_typeof(env, args[2], &type);
  auto map = type == napi_external ? HandleOf<HitMap>(env, args[2]) : nullptr;
  if (!server || server->is_closed || !args.GetInt32(1, &fd) || fd < 0 || (!map && type != napi_undefined) ||
      !args.GetBool(3, &is_structured) || !GetBytes(env, args[4], &head) || head.length > NbdClient::kInboxBytesMax) {
    return ThrowUsage(env, "nbdServe(loop, fd, hitMap or undefined, structured, head: Uint8Array)");
  }
  const int own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
  if (own < 0) return Int(env, 0);
  const uint32_t id = server->loop->Add(own, std::move(map), is_structured, head.data, head.length);
  if (id == 0) close(own);
  else CountClients(server.get(), 1);
  napi_value result = nullptr;
  napi_create_uint32(env, id, &result);
  return result;
}

napi_value NbdWrite(napi_env env, napi_callback_info info) {
  Arguments<3> args(env, info);
  auto server = args.ok() ? HandleOf<Server>(env, args[0]) : nullptr;
  uint32_t id = 0, count = 0;
  if (!server || !args.GetUint32(1, &id) || napi_get_array_length(env, args[2], &count) != napi_ok || count == 0 ||
      count > kPartsMax) {
    return ThrowUsage(env, "nbdWrite(loop, id, parts: 1 to 1023 Uint8Array)");
  }
  iovec parts[kPartsMax];
  for (uint32_t at = 0; at < count; at++) {
    napi_value element;
    Bytes bytes;
    if (napi_get_element(env, args[2], at, &element) != napi_ok || !GetBytes(env, element, &bytes)) {
      return ThrowUsage(env, "nbdWrite(loop, id, parts: 1 to 1023 Uint8Array)");
    }
    parts[at] = {bytes.data, bytes.length};
  }
  const size_t unsent = server->is_closed ? 0 : server->loop->Write(id, parts, count);
  return Double(env, static_cast<double>(unsent));
}

napi_value NbdPause(napi_env env, napi_callback_info info) {
  Arguments<3> args(env, info);
  auto server = args.ok() ? HandleOf<Server>(env, args[0]) : nullptr;
  uint32_t id = 0;
  bool is_paused = false;
  if (!server || !args.GetUint32(1, &id) || !args.GetBool(2, &is_paused)) {
    return ThrowUsage(env, "nbdPause(loop, id, isPaused)");
  }
  if (!server->is_closed) server->loop->Pause(id, is_paused);
  return nullptr;
}

napi_value NbdEnd(napi_env env, napi_callback_info info) {
  Arguments<3> args(env, info);
  auto server = args.ok() ? HandleOf<Server>(env, args[0]) : nullptr;
  uint32_t id = 0;
  bool now = false;
  if (!server || !args.GetUint32(1, &id) || !args.GetBool(2, &now)) return ThrowUsage(env, "nbdEnd(loop, id, atOnce)");
  if (server->is_closed) return nullptr;
  now ? server->loop->Destroy(id) : server->loop->End(id);
  return nullptr;
}

napi_value NbdCounts(napi_env env, napi_callback_info info) {
  Arguments<1> args(env, info);
  auto server = args.ok() ? HandleOf<Server>(env, args[0]) : nullptr;
  if (!server) return ThrowUsage(env, "nbdCounts(loop)");
  return Doubles(env, {static_cast<double>(server->loop->hit_reads()), static_cast<double>(server->loop->hit_bytes())});
}

}  // namespace

void RegisterNbdChannel(napi_env env, napi_value exports) {
  SetFunction(env, exports, "nbdOpen", NbdOpen);
  SetFunction(env, exports, "nbdClose", NbdClose);
  SetFunction(env, exports, "nbdServe", NbdServe);
  SetFunction(env, exports, "nbdWrite", NbdWrite);
  SetFunction(env, exports, "nbdPause", NbdPause);
  SetFunction(env, exports, "nbdEnd", NbdEnd);
  SetFunction(env, exports, "nbdCounts", NbdCounts);
}

}  // namespace lazydisk
