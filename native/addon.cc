// The addon's entry point and its Node-API helpers.
#include "addon.h"

namespace lazydisk {

bool GetBytes(napi_env env, napi_value value, Bytes* bytes) {
  napi_typedarray_type type;
  size_t length = 0;
  void* data = nullptr;
  if (napi_get_typedarray_info(env, value, &type, &length, &data, nullptr, nullptr) != napi_ok) return false;
  if (type != napi_uint8_array) return false;
  *bytes = {static_cast<uint8_t*>(data), length};
  return true;
}

void SetFunction(napi_env env, napi_value exports, const char* name, napi_callback callback) {
  napi_value function;
  if (napi_create_function(env, name, NAPI_AUTO_LENGTH, callback, nullptr, &function) != napi_ok) return;
  napi_set_named_property(env, exports, name, function);
}

napi_value Int(napi_env env, int value) {
  napi_value result = nullptr;
  napi_create_int32(env, value, &result);
  return result;
}

napi_value ThrowUsage(napi_env env, const char* message) {
  napi_throw_type_error(env, "ERR_INVALID_ARG_TYPE", message);
  return nullptr;
}

}  // namespace lazydisk

NAPI_MODULE_INIT() {
  lazydisk::RegisterErasure(env, exports);
  lazydisk::RegisterOpenChunk(env, exports);
  lazydisk::RegisterSealChunk(env, exports);
  lazydisk::RegisterSha256(env, exports);
  lazydisk::RegisterFuseChannel(env, exports);
  lazydisk::RegisterFuseMount(env, exports);
  lazydisk::RegisterLayerDecoder(env, exports);
  lazydisk::RegisterSocketSend(env, exports);
  lazydisk::RegisterProcess(env, exports);
  lazydisk::RegisterResidency(env, exports);
  lazydisk::RegisterNbdChannel(env, exports);
  return exports;
}
