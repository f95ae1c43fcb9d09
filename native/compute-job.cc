// The threads, and the way back: finished jobs are collected, and their event loop is woken once for all that have
// finished by then.
#include "compute-job.h"

#include <signal.h>
#include <uv.h>

#include <condition_variable>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace lazydisk {

// The jobs of one environment. Everything except `done` and `running` belongs to the environment's own thread.
struct ComputeLoop {
  napi_env env = nullptr;
  uv_async_t async = {};
  napi_async_context context = nullptr;
  napi_async_cleanup_hook_handle cleanup = nullptr;
  size_t pending = 0;
  // Guarded by the mutex of ComputeThreads.
  std::vector<ComputeJob*> done;
  size_t running = 0;

  static ComputeLoop* Of(napi_env env);
  static void OnDone(uv_async_t* async);
  static void OnTeardown(napi_async_cleanup_hook_handle handle, void* data);
  void Finish(ComputeJob* job);
};

class ComputeThreads {
 public:
  // Never destroyed: its threads run until the process exits.
  static ComputeThreads& Get() {
    static ComputeThreads* threads = new ComputeThreads(uv_available_parallelism());
    return *threads;
  }

  void Push(ComputeJob* job) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      waiting_.push_back(job);
    }
    wanted_.notify_one();
  }

  std::vector<ComputeJob*> TakeDone(ComputeLoop* loop) {
    std::lock_guard<std::mutex> lock(mutex_);
    return std::move(loop->done);
  }

  // Returns all jobs of `loop`, after those that run have finished. They only compute, so this takes a moment.
  std::vector<ComputeJob*> Withdraw(ComputeLoop* loop) {
    std::unique_lock<std::mutex> lock(mutex_);
    std::vector<ComputeJob*> jobs;
    std::erase_if(waiting_, [&](ComputeJob* job) {
      if (job->loop_ != loop) return false;
      jobs.push_back(job);
      return true;
    });
    ended_.wait(lock, [&] { return loop->running == 0; });
    jobs.insert(jobs.end(), loop->done.begin(), loop->done.end());
    loop->done.clear();
    return jobs;
  }

 private:
  explicit ComputeThreads(unsigned count) {
    // Signals belong to the main thread.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (unsigned n = 0; n < count; n++) std::thread([this] { Work(); }).detach();
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  void Work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wanted_.wait(lock, [this] { return !waiting_.empty(); });
      ComputeJob* job = waiting_.front();
      waiting_.pop_front();
      ComputeLoop* loop = job->loop_;
      loop->running++;
      lock.unlock();
      job->result_ = job->Run();
      lock.lock();
      loop->done.push_back(job);
      // Withdraw waits for `running` under the mutex, so the loop exists for as long as this needs it.
      if (loop->done.size() == 1) uv_async_send(&loop->async);
      loop->running--;
      ended_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wanted_;
  std::condition_variable ended_;
  std::deque<ComputeJob*> waiting_;
};

// An environment stays on one thread, and a thread has one environment.
static thread_local ComputeLoop* current = nullptr;

ComputeLoop* ComputeLoop::Of(napi_env env) {
  if (current) return current;
  ComputeLoop* loop = new ComputeLoop;
  loop->env = env;
  uv_loop_t* uv = nullptr;
  napi_value name;
  if (napi_get_uv_event_loop(env, &uv) != napi_ok || uv_async_init(uv, &loop->async, OnDone) != 0) {
    delete loop;
    return nullptr;
  }
  loop->async.data = loop;
  // Only unfinished jobs keep the process alive.
  uv_unref(reinterpret_cast<uv_handle_t*>(&loop->async));
  napi_create_string_utf8(env, "lazydisk:compute", NAPI_AUTO_LENGTH, &name);
  napi_async_init(env, nullptr, name, &loop->context);
  napi_add_async_cleanup_hook(env, OnTeardown, loop, &loop->cleanup);
  current = loop;
  return loop;
}

void ComputeLoop::OnDone(uv_async_t* async) {
  ComputeLoop* loop = static_cast<ComputeLoop*>(async->data);
  for (ComputeJob* job : ComputeThreads::Get().TakeDone(loop)) {
    napi_handle_scope scope;
    if (napi_open_handle_scope(loop->env, &scope) != napi_ok) return;
    loop->Finish(job);
    napi_close_handle_scope(loop->env, scope);
  }
}

void ComputeLoop::Finish(ComputeJob* job) {
  napi_value held, callback, argument, global;
  const bool call = napi_get_reference_value(env, job->held_, &held) == napi_ok &&
                    napi_get_element(env, held, job->callback_at_, &callback) == napi_ok &&
                    napi_create_int32(env, job->result_, &argument) == napi_ok &&
                    napi_get_global(env, &global) == napi_ok;
  napi_delete_reference(env, job->held_);
  delete job;
  if (--pending == 0) uv_unref(reinterpret_cast<uv_handle_t*>(&async));
  if (!call) return;
  if (napi_make_callback(env, context, global, callback, 1, &argument, nullptr) == napi_pending_exception) {
    napi_value error;
    napi_get_and_clear_last_exception(env, &error);
    napi_fatal_exception(env, error);
  }
}

void ComputeLoop::OnTeardown(napi_async_cleanup_hook_handle, void* data) {
  ComputeLoop* loop = static_cast<ComputeLoop*>(data);
  for (ComputeJob* job : ComputeThreads::Get().Withdraw(loop)) {
    napi_delete_reference(loop->env, job->held_);
    delete job;
  }
  napi_async_destroy(loop->env, loop->context);
  current = nullptr;
  uv_close(reinterpret_cast<uv_handle_t*>(&loop->async), [](uv_handle_t* handle) {
    ComputeLoop* closed = static_cast<ComputeLoop*>(handle->data);
    napi_remove_async_cleanup_hook(closed->cleanup);
    delete closed;
  });
}

void ComputeJob::Queue(napi_env env, const char* name, ComputeJob* job, const napi_value* args, size_t count) {
  ComputeLoop* loop = ComputeLoop::Of(env);
  napi_value held;
  bool ok = loop && napi_create_array_with_length(env, count, &held) == napi_ok;
  for (uint32_t at = 0; ok && at < count; at++) ok = napi_set_element(env, held, at, args[at]) == napi_ok;
  ok = ok && napi_create_reference(env, held, 1, &job->held_) == napi_ok;
  if (!ok) {
    delete job;
    napi_throw_error(env, nullptr, (std::string(name) + ": cannot queue the job").c_str());
    return;
  }
  job->callback_at_ = static_cast<uint32_t>(count - 1);
  job->loop_ = loop;
  if (loop->pending++ == 0) uv_ref(reinterpret_cast<uv_handle_t*>(&loop->async));
  ComputeThreads::Get().Push(job);
}

}  // namespace lazydisk
