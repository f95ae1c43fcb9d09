// A job for libuv's thread pool: its arguments are held in one array while it runs.
#include "pool-job.h"

#include <string>

namespace lazydisk {

void PoolJob::Queue(napi_env env, const char* name, PoolJob* job, const napi_value* args, size_t count) {
  napi_value held, resource_name;
  bool ok = napi_create_array_with_length(env, count, &held) == napi_ok;
  for (uint32_t at = 0; ok && at < count; at++) ok = napi_set_element(env, held, at, args[at]) == napi_ok;
  job->callback_at_ = static_cast<uint32_t>(count - 1);
  const std::string resource = std::string("lazydisk:") + name;
  ok = ok && napi_create_reference(env, held, 1, &job->held_) == napi_ok &&
       napi_create_string_utf8(env, resource.c_str(), NAPI_AUTO_LENGTH, &resource_name) == napi_ok &&
       napi_create_async_work(env, nullptr, resource_name, Execute, Complete, job, &job->work_) == napi_ok &&
       napi_queue_async_work(env, job->work_) == napi_ok;
  if (ok) return;
  Destroy(env, job);
  napi_throw_error(env, nullptr, (std::string(name) + ": cannot queue the job").c_str());
}

void PoolJob::Execute(napi_env, void* data) {
  PoolJob* job = static_cast<PoolJob*>(data);
  job->result_ = job->Run();
}

void PoolJob::Complete(napi_env env, napi_status work_status, void* data) {
  PoolJob* job = static_cast<PoolJob*>(data);
  napi_value held, callback, argument, global;
  const bool call = work_status == napi_ok && napi_get_reference_value(env, job->held_, &held) == napi_ok &&
                    napi_get_element(env, held, job->callback_at_, &callback) == napi_ok &&
                    napi_create_int32(env, job->result_, &argument) == napi_ok &&
                    napi_get_global(env, &global) == napi_ok;
  Destroy(env, job);
  // An exception thrown by the callback stays pending: Node reports it as uncaught.
  if (call) napi_call_function(env, global, callback, 1, &argument, nullptr);
}

void PoolJob::Destroy(napi_env env, PoolJob* job) {
  if (job->held_) napi_delete_reference(env, job->held_);
  if (job->work_) napi_delete_async_work(env, job->work_);
  delete job;
}

}  // namespace lazydisk
