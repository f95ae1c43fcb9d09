// One piece of work for libuv's thread pool, from a call of JavaScript to its callback.
#pragma once

#include <node_api.h>

#include <cstddef>

namespace lazydisk {

class PoolJob {
 public:
  virtual ~PoolJob() = default;

  // Takes `job` over and queues it. `args`, the last of which is the callback, are kept alive until it is called
  // with what Run gave. Where that fails an exception is pending, and there is no callback.
  static void Queue(napi_env env, const char* name, PoolJob* job, const napi_value* args, size_t count);

 protected:
  // On a pool thread, with no JavaScript.
  virtual int Run() = 0;

 private:
  static void Execute(napi_env env, void* data);
  static void Complete(napi_env env, napi_status work_status, void* data);
  static void Destroy(napi_env env, PoolJob* job);

  napi_async_work work_ = nullptr;
  // One array of the arguments.
  napi_ref held_ = nullptr;
  uint32_t callback_at_ = 0;
  int result_ = 0;
};

}  // namespace lazydisk
