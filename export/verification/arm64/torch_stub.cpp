// In libtorch's place for libcustom_ops_aot_lib.so of executorch 1.5.1, which registers its operators (update_cache,
// custom_sdpa) twice: with torch, which does nothing here, and with ExecuTorch. All else that it wants of torch stays
// undefined: a program that binds lazily, as ours does, never asks.
#include <ATen/core/function_schema.h>
#include <torch/library.h>

// c10::UndefinedTensorImpl::_singleton, of which only the address is taken: data is never bound lazily.
char undefined_tensor asm("_ZN3c1019UndefinedTensorImpl10_singletonE");

namespace torch {
Library::Library(Kind kind, std::string ns, std::optional<c10::DispatchKey> key, const char* file, uint32_t line)
    : kind_(kind), ns_(std::move(ns)), dispatch_key_(key), file_(file), line_(line) {}
Library& Library::_def(c10::FunctionSchema&&, c10::OperatorName*, const std::vector<at::Tag>&, _RegisterOrVerify) & {
  return *this;
}
Library& Library::_impl(const char*, CppFunction&&, _RegisterOrVerify) & { return *this; }
CppFunction::~CppFunction() = default;
c10::FunctionSchema jit::parseSchema(const std::string&, bool) { return {"nothing", "", {}, {}}; }
}  // namespace torch

namespace c10 {
FunctionSchema detail::infer_schema::make_function_schema(ArrayRef<ArgumentDef>, ArrayRef<ArgumentDef>) {
  return {"nothing", "", {}, {}};
}
}  // namespace c10
