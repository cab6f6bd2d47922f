// The few entries of ONNX Runtime's C ABI that custom operators need, declared by hand: no package carries its header.
// Slots never move within the ABI; these were read from the header and run on 1.32.
#pragma once
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace redline::ort {

struct Status;
struct Value;
struct Shape;
struct KernelInfo;
struct KernelContext;
struct Domain;
struct SessionOptions;

enum Code { kFail = 1, kInvalidArgument = 2 };
enum Type { kUndefined = 0, kFloat = 1, kInt8 = 3, kInt64 = 7 };

struct ApiBase {
  const void* const* (*get_api)(uint32_t version);
  const char* (*version)();
};
constexpr uint32_t kApiVersion = 17;

struct CustomOp {  // OrtCustomOp, version 17
  uint32_t version;
  void* (*create_v1)(const CustomOp*, const void* api, const KernelInfo*);
  const char* (*name)(const CustomOp*);
  const char* (*provider)(const CustomOp*);
  int (*input_type)(const CustomOp*, size_t);
  size_t (*input_count)(const CustomOp*);
  int (*output_type)(const CustomOp*, size_t);
  size_t (*output_count)(const CustomOp*);
  void (*compute_v1)(void*, KernelContext*);
  void (*destroy)(void*);
  int (*input_kind)(const CustomOp*, size_t);
  int (*output_kind)(const CustomOp*, size_t);
  int (*input_memory)(const CustomOp*, size_t);
  int (*variadic_inputs_least)(const CustomOp*);
  int (*variadic_inputs_alike)(const CustomOp*);
  int (*variadic_outputs_least)(const CustomOp*);
  int (*variadic_outputs_alike)(const CustomOp*);
  Status* (*create)(const CustomOp*, const void* api, const KernelInfo*, void** kernel);
  Status* (*compute)(void* kernel, KernelContext*);
  Status* (*infer_shape)(const CustomOp*, void*);
  int (*start_version)(const CustomOp*);
  int (*end_version)(const CustomOp*);
  size_t (*may_inplace)(int**, int**);
  void (*release_may_inplace)(int*, int*);
  size_t (*alias_map)(int**, int**);
  void (*release_alias_map)(int*, int*);
};
enum Kind { kRequired = 0, kVariadic = 2 };
enum Memory { kDefaultMemory = 0 };

struct Failed {  // an error status of the library's own, passed on as it is
  Status* status;
};

class Api {
 public:
  explicit Api(const void* api) : slots_(static_cast<const void* const*>(api)) {}

  Status* error(Code code, const char* text) const {
    return call<Status*>(0, static_cast<int>(code), text);
  }
  Domain* domain(const char* name) const {
    Domain* made;
    must(call<Status*>(26, name, &made));
    return made;
  }
  void add(Domain* domain, const CustomOp* op) const { must(call<Status*>(27, domain, op)); }
  void add(SessionOptions* options, Domain* domain) const { must(call<Status*>(28, options, domain)); }

  // The constant at this input. Throws if it is computed.
  const Value* constant(const KernelInfo* info, size_t index) const {
    int is_constant;
    const Value* value;
    must(call<Status*>(249, info, index, &is_constant, &value));
    if (is_constant == 0 || value == nullptr)
      throw std::invalid_argument("input " + std::to_string(index) + " must be a constant");
    return value;
  }
  const Value* input(const KernelContext* context, size_t index) const {
    const Value* value;
    must(call<Status*>(90, context, index, &value));
    return value;
  }
  Value* output(KernelContext* context, size_t index, const std::vector<int64_t>& shape) const {
    Value* value;
    must(call<Status*>(91, context, index, shape.data(), shape.size(), &value));
    return value;
  }
  std::vector<int64_t> shape(const Value* value) const { return described(value).first; }
  template <class T>
  T* data(const Value* value) const {
    void* p;
    must(call<Status*>(51, value, &p));
    return static_cast<T*>(p);
  }
  template <class T>
  const T* data(const Value* value, Type type) const {
    if (const int came = described(value).second; came != type)
      throw std::invalid_argument("wanted element type " + std::to_string(type) + ", got " + std::to_string(came));
    return data<T>(value);
  }

 private:
  template <class R, class... A>
  R call(size_t slot, A... arguments) const {
    return reinterpret_cast<R (*)(A...)>(const_cast<void*>(slots_[slot]))(arguments...);
  }
  static void must(Status* status) {
    if (status != nullptr) throw Failed{status};
  }
  std::pair<std::vector<int64_t>, int> described(const Value* value) const {
    Shape* shape;
    must(call<Status*>(65, value, &shape));
    int type;
    size_t count;
    must(call<Status*>(60, shape, &type));
    must(call<Status*>(61, shape, &count));
    std::vector<int64_t> sizes(count);
    must(call<Status*>(62, shape, sizes.data(), count));
    call<void>(99, shape);
    return {sizes, type};
  }

  const void* const* slots_;
};

// Runs `body`; what it throws becomes the status that Python sees, with our text.
template <class Body>
Status* guarded(const Api& api, const char* op, Body body) {
  try {
    body();
    return nullptr;
  } catch (const Failed& failed) {
    return failed.status;
  } catch (const std::invalid_argument& e) {
    return api.error(kInvalidArgument, (std::string(op) + ": " + e.what()).c_str());
  } catch (const std::exception& e) {
    return api.error(kFail, (std::string(op) + ": " + e.what()).c_str());
  }
}

}  // namespace redline::ort
