// One piece of work that only computes, from a call of JavaScript to its callback. It runs on threads of its own, one a
// core, and not on libuv's pool: there a file system that hangs takes threads for good, and what needs none waits too.
#pragma once

#include <node_api.h>

#include <cstddef>

namespace lazydisk {

struct ComputeLoop;

class ComputeJob {
 public:
  virtual ~ComputeJob() = default;

  // Takes `job` over and queues it. `args`, the last of which is the callback, are kept alive until it is called
  // with what Run gave. Where that fails an exception is pending, and there is no callback.
  static void Queue(napi_env env, const char* name, ComputeJob* job, const napi_value* args, size_t count);

 protected:
  // On one of the threads, with no JavaScript. It must not wait for anything.
  virtual int Run() = 0;

 private:
  friend struct ComputeLoop;
  friend class ComputeThreads;

  ComputeLoop* loop_ = nullptr;
  // One array of the arguments.
  napi_ref held_ = nullptr;
  uint32_t callback_at_ = 0;
  int result_ = 0;
};

}  // namespace lazydisk
