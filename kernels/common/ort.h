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
enum Type { kUndefined = 0, kFloat = 1, kInt8 = 3, kInt32 = 6, kInt64 = 7, kBfloat16 = 16 };

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

struct Rows {
  const float* x;
  int64_t count;
  std::vector<int64_t> shape;  // [..., k]
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
  int64_t attribute(const KernelInfo* info, const char* name) const {
    int64_t value;
    must(call<Status*>(86, info, name, &value));
    return value;
  }
  // A constant vector, with how many numbers it holds.
  template <class T>
  std::pair<const T*, int64_t> vector(const KernelInfo* info, size_t index, Type type, const char* what) const {
    const Value* value = constant(info, index);
    const auto sizes = shape(value);
    if (sizes.size() != 1) throw std::invalid_argument(std::string(what) + " must be a vector");
    return {data<T>(value, type), sizes[0]};
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
  // Input 0, float [..., k], as rows of k.
  Rows rows(const KernelContext* context, int64_t k) const {
    const Value* x = input(context, 0);
    Rows found{data<float>(x, kFloat), 1, shape(x)};
    const auto& sizes = found.shape;
    if (sizes.empty() || sizes.back() != k)
      throw std::invalid_argument("x [..., " + (sizes.empty() ? std::string() : std::to_string(sizes.back())) +
                                  "], wanted [..., " + std::to_string(k) + "]");
    for (size_t i = 0; i + 1 < sizes.size(); ++i) found.count *= sizes[i];
    return found;
  }
  std::vector<int64_t> shape(const Value* value) const { return described(value).first; }
  int type(const Value* value) const { return described(value).second; }
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

// The operator that a class computes: kName; kFirst (type of input 0), any inputs after it; one float output;
// Kernel(api, info) reads the constants, compute(context) answers.
template <class Kernel>
const CustomOp* op() {
  using Op = const CustomOp*;
  static const CustomOp made = [] {
    CustomOp o{};
    o.version = kApiVersion;
    o.name = [](Op) { return Kernel::kName; };
    o.provider = [](Op) -> const char* { return nullptr; };  // the CPU
    o.input_type = [](Op, size_t i) -> int { return i == 0 ? Kernel::kFirst : kUndefined; };
    o.input_count = [](Op) -> size_t { return 2; };
    o.output_type = [](Op, size_t) -> int { return kFloat; };
    o.output_count = [](Op) -> size_t { return 1; };
    o.input_kind = [](Op, size_t i) -> int { return i == 0 ? kRequired : kVariadic; };
    o.output_kind = [](Op, size_t) -> int { return kRequired; };
    o.input_memory = [](Op, size_t) -> int { return kDefaultMemory; };
    o.variadic_inputs_least = [](Op) { return 1; };
    o.variadic_inputs_alike = [](Op) { return 0; };
    o.variadic_outputs_least = [](Op) { return 0; };
    o.variadic_outputs_alike = [](Op) { return 0; };
    o.start_version = [](Op) { return 1; };
    o.end_version = [](Op) { return 1; };
    o.create = [](Op, const void* slots, const KernelInfo* info, void** kernel) {
      const Api api(slots);
      return guarded(api, Kernel::kName, [&] { *kernel = new Kernel(api, info); });
    };
    o.compute = [](void* p, KernelContext* context) {
      auto* kernel = static_cast<Kernel*>(p);
      return guarded(kernel->api, Kernel::kName, [&] { kernel->compute(context); });
    };
    o.destroy = [](void* p) { delete static_cast<Kernel*>(p); };
    return o;
  }();
  return &made;
}

// Every operator that this library holds, in the order in which it was linked.
inline std::vector<const CustomOp*>& operators() {
  static std::vector<const CustomOp*> all;
  return all;
}

// In an op.cpp, `const ort::Registered<Kernel> registered;` puts its operator into the library.
template <class Kernel>
struct Registered {
  Registered() { operators().push_back(op<Kernel>()); }
};

}  // namespace redline::ort
