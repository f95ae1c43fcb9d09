// What the parts of the addon share: Node-API helpers and the registration of each part.
#pragma once

#include <node_api.h>

#include <cstddef>
#include <cstdint>

namespace lazydisk {

// Each part adds its functions to `exports`; a Node-API failure leaves an exception pending.
void RegisterErasure(napi_env env, napi_value exports);
void RegisterOpenChunk(napi_env env, napi_value exports);
void RegisterSealChunk(napi_env env, napi_value exports);
void RegisterSha256(napi_env env, napi_value exports);
void RegisterFuseChannel(napi_env env, napi_value exports);
void RegisterFuseMount(napi_env env, napi_value exports);
void RegisterLayerDecoder(napi_env env, napi_value exports);
void RegisterSocketSend(napi_env env, napi_value exports);
void RegisterProcess(napi_env env, napi_value exports);
void RegisterResidency(napi_env env, napi_value exports);
void RegisterNbdChannel(napi_env env, napi_value exports);

struct Bytes {
  uint8_t* data;
  size_t length;
};

// The memory of a Uint8Array (or Buffer), or false. The memory does not move while the array is referenced.
bool GetBytes(napi_env env, napi_value value, Bytes* bytes);

void SetFunction(napi_env env, napi_value exports, const char* name, napi_callback callback);

napi_value Int(napi_env env, int value);

napi_value ThrowUsage(napi_env env, const char* message);

}  // namespace lazydisk
