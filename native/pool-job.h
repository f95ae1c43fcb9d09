// A job for libuv's thread pool, from a JavaScript call to its callback.
#pragma once

#include <node_api.h>

#include <cstddef>

namespace lazydisk {

class PoolJob {
 public:
  virtual ~PoolJob() = default;

  // Takes ownership of `job` and queues it. `args`, the last of which is the callback, are kept alive until the
  // callback is called with the result of Run. If queueing fails, an exception is pending and the callback is never
  // called.
  static void Queue(napi_env env, const char* name, PoolJob* job, const napi_value* args, size_t count);

 protected:
  // Runs on a pool thread, without JavaScript.
  virtual int Run() = 0;

 private:
  static void Execute(napi_env env, void* data);
  static void Complete(napi_env env, napi_status work_status, void* data);
  static void Destroy(napi_env env, PoolJob* job);

  napi_async_work work_ = nullptr;
  // One array with the arguments.
  napi_ref held_ = nullptr;
  uint32_t callback_at_ = 0;
  int result_ = 0;
};

}  // namespace lazydisk
