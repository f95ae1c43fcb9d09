// Objects of the addon that JavaScript holds, and the arguments of a call.
#pragma once

#include <node_api.h>

#include <initializer_list>
#include <memory>

#include "addon.h"

namespace lazydisk {

// The tag of a type's handles; each type's tag has a distinct address.
template <typename T>
const napi_type_tag& TagOf() {
  static const napi_type_tag tag = {0x6c617a796469736b, reinterpret_cast<uintptr_t>(&tag)};
  return tag;
}

// An external that shares ownership of `object` until it is garbage-collected.
template <typename T>
napi_value NewHandle(napi_env env, std::shared_ptr<T> object) {
  auto* held = new std::shared_ptr<T>(std::move(object));
  const auto finalize = [](napi_env, void* data, void*) { delete static_cast<std::shared_ptr<T>*>(data); };
  napi_value external = nullptr;
  if (napi_create_external(env, held, finalize, nullptr, &external) != napi_ok) {
    delete held;
    return nullptr;
  }
  napi_type_tag_object(env, external, &TagOf<T>());
  return external;
}

// The object of a handle of this type; null for anything else.
template <typename T>
std::shared_ptr<T> HandleOf(napi_env env, napi_value value) {
  bool is_tagged = false;
  void* data = nullptr;
  if (napi_check_object_type_tag(env, value, &TagOf<T>(), &is_tagged) != napi_ok || !is_tagged ||
      napi_get_value_external(env, value, &data) != napi_ok) {
    return nullptr;
  }
  return *static_cast<std::shared_ptr<T>*>(data);
}

// Exactly `N` arguments of a call.
template <size_t N>
class Arguments {
 public:
  Arguments(napi_env env, napi_callback_info info) : env_(env) {
    size_t count = N;
    ok_ = napi_get_cb_info(env, info, &count, values_, nullptr, nullptr) == napi_ok && count == N;
  }
  bool ok() const { return ok_; }
  napi_value operator[](size_t at) const { return values_[at]; }
  const napi_value* all() const { return values_; }

  bool GetInt64(size_t at, int64_t* value) const { return napi_get_value_int64(env_, values_[at], value) == napi_ok; }
  bool GetInt32(size_t at, int32_t* value) const { return napi_get_value_int32(env_, values_[at], value) == napi_ok; }
  // Unlike Node-API's own, which reduces -1 and 2^32 modulo 2^32.
  bool GetUint32(size_t at, uint32_t* value) const {
    int64_t wide = -1;
    if (!GetInt64(at, &wide) || wide < 0 || wide > UINT32_MAX) return false;
    *value = static_cast<uint32_t>(wide);
    return true;
  }
  bool GetBytes(size_t at, Bytes* bytes) const { return lazydisk::GetBytes(env_, values_[at], bytes); }
  bool IsFunction(size_t at) const {
    napi_valuetype type = napi_undefined;
    return napi_typeof(env_, values_[at], &type) == napi_ok && type == napi_function;
  }
  bool GetBool(size_t at, bool* value) const { return napi_get_value_bool(env_, values_[at], value) == napi_ok; }

 private:
  napi_env env_;
  napi_value values_[N];
  bool ok_;
};

inline napi_value Bool(napi_env env, bool value) {
  napi_value result = nullptr;
  napi_get_boolean(env, value, &result);
  return result;
}

inline napi_value Double(napi_env env, double value) {
  napi_value result = nullptr;
  napi_create_double(env, value, &result);
  return result;
}

inline napi_value Doubles(napi_env env, std::initializer_list<double> values) {
  napi_value result = nullptr, element;
  napi_create_array_with_length(env, values.size(), &result);
  uint32_t at = 0;
  for (const double value : values) {
    if (napi_create_double(env, value, &element) == napi_ok) napi_set_element(env, result, at++, element);
  }
  return result;
}

}  // namespace lazydisk
