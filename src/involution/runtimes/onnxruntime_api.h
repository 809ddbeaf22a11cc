// The part of onnxruntime's C API that a custom operator needs. The package on PyPI has no headers, but the API is a
// binary interface that never changes, except that releases append to it: positions in the table of functions, layouts
// and numbers below are those of API version 17, which onnxruntime has since release 1.17.
#pragma once

#include <cstddef>
#include <cstdint>

constexpr uint32_t kOrtApiVersion = 17;

struct OrtCustomOpDomain;
struct OrtKernelContext;
struct OrtKernelInfo;
struct OrtSessionOptions;
struct OrtStatus;  // null if a function succeeded
struct OrtTensorTypeAndShapeInfo;
struct OrtValue;
struct OrtCustomOp;

enum OrtErrorCode : int { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2, ORT_NOT_IMPLEMENTED = 9 };
enum ONNXTensorElementDataType : int {
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 = 10,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE = 11,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16 = 16,
};
enum OrtCustomOpInputOutputCharacteristic : int { INPUT_OUTPUT_REQUIRED, INPUT_OUTPUT_OPTIONAL };
enum OrtMemType : int { OrtMemTypeDefault };

// The table of functions.
struct OrtApi {
  OrtStatus* (*CreateStatus)(OrtErrorCode code, const char* message);
  void* unused_1;
  const char* (*GetErrorMessage)(const OrtStatus* status);
  void* unused_3[23];
  OrtStatus* (*CreateCustomOpDomain)(const char* name, OrtCustomOpDomain** domain);
  OrtStatus* (*CustomOpDomain_Add)(OrtCustomOpDomain* domain, const OrtCustomOp* op);
  OrtStatus* (*AddCustomOpDomain)(OrtSessionOptions* options, OrtCustomOpDomain* domain);
  void* unused_29[22];
  OrtStatus* (*GetTensorMutableData)(OrtValue* value, void** data);
  void* unused_52[9];
  OrtStatus* (*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo* info, size_t* count);
  OrtStatus* (*GetDimensions)(const OrtTensorTypeAndShapeInfo* info, int64_t* sizes, size_t count);
  void* unused_63[2];
  OrtStatus* (*GetTensorTypeAndShape)(const OrtValue* value, OrtTensorTypeAndShapeInfo** info);
  void* unused_66[20];
  OrtStatus* (*KernelInfoGetAttribute_int64)(const OrtKernelInfo* info, const char* name, int64_t* value);
  void* unused_87;
  OrtStatus* (*KernelContext_GetInputCount)(const OrtKernelContext* context, size_t* count);
  void* unused_89;
  // For an optional input that is missing, the value is null.
  OrtStatus* (*KernelContext_GetInput)(const OrtKernelContext* context, size_t index, const OrtValue** value);
  OrtStatus* (*KernelContext_GetOutput)(OrtKernelContext* context, size_t index, const int64_t* sizes, size_t count,
                                        OrtValue** value);
  void* unused_92;
  void (*ReleaseStatus)(OrtStatus* status);
  void* unused_94[5];
  void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo* info);
  void* unused_100;
  void (*ReleaseCustomOpDomain)(OrtCustomOpDomain* domain);
  void* unused_102[61];
  // If `values` is null, only the size is returned.
  OrtStatus* (*KernelInfoGetAttributeArray_int64)(const OrtKernelInfo* info, const char* name, int64_t* values,
                                                  size_t* size);
  void* unused_164[110];
  // Calls `body(data, n)` for each n in [0, total) on the threads of the session. A thread takes one n after the other
  // if `batches` is 0.
  OrtStatus* (*KernelContext_ParallelFor)(const OrtKernelContext* context, void (*body)(void* data, size_t n),
                                          size_t total, size_t batches, void* data);
};

#define CHECK_POSITION(function, position) \
  static_assert(offsetof(OrtApi, function) == (position) * sizeof(void*), "the position of " #function)
CHECK_POSITION(GetErrorMessage, 2);
CHECK_POSITION(CreateCustomOpDomain, 26);
CHECK_POSITION(GetTensorMutableData, 51);
CHECK_POSITION(GetDimensionsCount, 61);
CHECK_POSITION(GetTensorTypeAndShape, 65);
CHECK_POSITION(KernelInfoGetAttribute_int64, 86);
CHECK_POSITION(KernelContext_GetInputCount, 88);
CHECK_POSITION(KernelContext_GetOutput, 91);
CHECK_POSITION(ReleaseStatus, 93);
CHECK_POSITION(ReleaseTensorTypeAndShapeInfo, 99);
CHECK_POSITION(ReleaseCustomOpDomain, 101);
CHECK_POSITION(KernelInfoGetAttributeArray_int64, 163);
CHECK_POSITION(KernelContext_ParallelFor, 274);
#undef CHECK_POSITION

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);  // null if this release does not have the version
  const char* (*GetVersionString)();
};

// An operator: its signature and its kernels. onnxruntime reads the members that the version has.
struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info);
  const char* (*GetName)(const OrtCustomOp* op);
  const char* (*GetExecutionProviderType)(const OrtCustomOp* op);  // null for the CPU
  ONNXTensorElementDataType (*GetInputType)(const OrtCustomOp* op, size_t index);
  size_t (*GetInputTypeCount)(const OrtCustomOp* op);
  ONNXTensorElementDataType (*GetOutputType)(const OrtCustomOp* op, size_t index);
  size_t (*GetOutputTypeCount)(const OrtCustomOp* op);
  void (*KernelCompute)(void* kernel, OrtKernelContext* context);
  void (*KernelDestroy)(void* kernel);
  OrtCustomOpInputOutputCharacteristic (*GetInputCharacteristic)(const OrtCustomOp* op, size_t index);
  OrtCustomOpInputOutputCharacteristic (*GetOutputCharacteristic)(const OrtCustomOp* op, size_t index);
  OrtMemType (*GetInputMemoryType)(const OrtCustomOp* op, size_t index);
  void* variadic[4];  // for operators with any number of inputs or outputs
  // Used instead of CreateKernel and KernelCompute if they are not null.
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext* context);
  void* InferOutputShapeFn;  // null: shapes are known at run time only
  int (*GetStartVersion)(const OrtCustomOp* op);
  int (*GetEndVersion)(const OrtCustomOp* op);
};
