// A job that only computes, from a JavaScript call to its callback. It runs on dedicated threads, one per core, and not
// on libuv's pool, where a hung file system takes threads for good and would hold up work that needs no file.
#pragma once

#include <node_api.h>

#include <cstddef>

namespace lazydisk {

struct ComputeLoop;

class ComputeJob {
 public:
  virtual ~ComputeJob() = default;

  // Takes ownership of `job` and queues it. `args`, the last of which is the callback, are kept alive until the
  // callback is called with the result of Run. If queueing fails, an exception is pending and the callback is never
  // called.
  static void Queue(napi_env env, const char* name, ComputeJob* job, const napi_value* args, size_t count);

 protected:
  // Runs on one of the threads, without JavaScript. It must not wait for anything.
  virtual int Run() = 0;

 private:
  friend struct ComputeLoop;
  friend class ComputeThreads;

  ComputeLoop* loop_ = nullptr;
  // One array with the arguments.
  napi_ref held_ = nullptr;
  uint32_t callback_at_ = 0;
  int result_ = 0;
};

}  // namespace lazydisk
