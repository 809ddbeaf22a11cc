// Stands in for the header of onnxruntime's releases for C++, which the package on PyPI does not have: the few classes
// that docs/cpp/onnxruntime.cpp uses, on the functions of the library in that package.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

enum OrtAllocatorType : int { OrtArenaAllocator = 1 };
enum OrtMemType : int { OrtMemTypeDefault = 0 };

struct OrtApiBase {
  void* const* (*GetApi)(uint32_t version);
};
extern "C" const OrtApiBase* OrtGetApiBase();

namespace Ort {

struct Exception : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Calls the function at a position of the table.
template <typename Result, typename... Arguments>
Result call(size_t position, Arguments... arguments) {
  return reinterpret_cast<Result (*)(Arguments...)>(OrtGetApiBase()->GetApi(17)[position])(arguments...);
}
template <typename... Arguments>
void check(size_t position, Arguments... arguments) {
  if (void* status = call<void*>(position, arguments...)) {
    const Exception error(call<const char*>(2, static_cast<const void*>(status)));
    call<void>(93, status);
    throw error;
  }
}

// Owns an object that the function at position `release` deletes.
template <size_t release>
struct Object {
  void* handle = nullptr;

  Object() = default;
  Object(Object&& other) : handle(std::exchange(other.handle, nullptr)) {}
  Object& operator=(Object&&) = delete;
  ~Object() {
    call<void>(release, handle);
  }
};

struct Env : Object<92> {
  Env() {
    check(3, 2, "", &handle);
  }
};
struct MemoryInfo : Object<94> {
  static MemoryInfo CreateCpu(OrtAllocatorType allocator, OrtMemType type) {
    MemoryInfo info;
    check(69, allocator, type, &info.handle);
    return info;
  }
};
struct RunOptions {};
struct SessionOptions : Object<100> {
  SessionOptions() {
    check(10, &handle);
  }
  void RegisterCustomOpsLibrary(const char* path) {
    check(228, handle, path);
  }
};
struct TensorTypeAndShapeInfo : Object<99> {
  size_t GetElementCount() const {
    size_t count = 0;
    check(64, handle, &count);
    return count;
  }
};
struct Value : Object<96> {
  template <typename T>
  static Value CreateTensor(const MemoryInfo& memory, T* data, size_t count, const int64_t* shape, size_t rank) {
    static_assert(std::is_same_v<T, float>);
    Value value;
    check(49, memory.handle, static_cast<void*>(data), count * sizeof(T), shape, rank, 1, &value.handle);
    return value;
  }
  template <typename T>
  const T* GetTensorData() const {
    void* data = nullptr;
    check(51, handle, &data);
    return static_cast<const T*>(data);
  }
  TensorTypeAndShapeInfo GetTensorTypeAndShapeInfo() const {
    TensorTypeAndShapeInfo info;
    check(65, handle, &info.handle);
    return info;
  }
};
struct Session : Object<95> {
  Session(const Env& env, const char* path, const SessionOptions& options) {
    check(7, env.handle, path, options.handle, &handle);
  }
  std::vector<Value> Run(const RunOptions&, const char* const* input_names, const Value* inputs, size_t input_count,
                         const char* const* output_names, size_t output_count) {
    std::vector<void*> given, results(output_count);
    for (size_t n = 0; n < input_count; ++n) {
      given.push_back(inputs[n].handle);
    }
    check(9, handle, static_cast<void*>(nullptr), input_names, given.data(), input_count, output_names, output_count,
          results.data());
    std::vector<Value> values(output_count);
    for (size_t n = 0; n < output_count; ++n) {
      values[n].handle = results[n];
    }
    return values;
  }
};

}  // namespace Ort
