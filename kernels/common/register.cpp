// What ONNX Runtime calls when it loads this library: every operator, in the domain ai.redline.
#include "ort.h"

extern "C" __attribute__((visibility("default"))) redline::ort::Status* RegisterCustomOps(
    redline::ort::SessionOptions* options, const redline::ort::ApiBase* base) {
  using namespace redline;
  const void* slots = base->get_api(ort::kApiVersion);
  if (slots == nullptr) return nullptr;  // older than 1.17: it will say that it doesn't know ai.redline
  const ort::Api api(slots);
  return ort::guarded(api, "ai.redline", [&] {
    // Made once and kept: sessions refer to it as long as the library is loaded.
    static ort::Domain* const domain = [&] {
      ort::Domain* made = api.domain("ai.redline");
      for (const ort::CustomOp* op : ort::operators()) api.add(made, op);
      return made;
    }();
    api.add(options, domain);
  });
}
