#include "device/cublas.h"

#include <absl/strings/str_cat.h>
#include <cublas_v2.h>
#include <dlfcn.h>

#include <string>

namespace kvcask {

struct Cublas::Functions {
  decltype(&cublasCreate_v2) create;
  decltype(&cublasDestroy_v2) destroy;
  decltype(&cublasSetStream_v2) set_stream;
  // Spelt out: the header has an overload for C++.
  cublasStatus_t (*gemm)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int,
                         const void*, const void*, cudaDataType, int, const void*, cudaDataType,
                         int, const void*, void*, cudaDataType, int, cublasComputeType_t,
                         cublasGemmAlgo_t);
};

namespace {

constexpr const char* kNames[] = {"libcublas.so.13", "libcublas.so.12", "libcublas.so"};

absl::Status BlasStatus(cublasStatus_t s, const char* what) {
  if (s == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("cuBLAS: ", what, ": status ", static_cast<int>(s)));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Cublas>> Cublas::Load() {
  void* library = nullptr;
  std::string why;
  for (const char* name : kNames) {
    library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) break;
    if (why.empty()) why = dlerror();
  }
  if (library == nullptr) return absl::UnavailableError(absl::StrCat("no cuBLAS: ", why));
  std::unique_ptr<Cublas> out(new Cublas());
  out->f_ = std::make_unique<Functions>();
  std::string missing;
  auto find = [&](const char* name, auto* f) {
    *f = reinterpret_cast<std::remove_pointer_t<decltype(f)>>(dlsym(library, name));
    if (*f == nullptr) missing = name;
  };
  find("cublasCreate_v2", &out->f_->create);
  find("cublasDestroy_v2", &out->f_->destroy);
  find("cublasSetStream_v2", &out->f_->set_stream);
  find("cublasGemmEx", &out->f_->gemm);
  if (!missing.empty()) {
    return absl::UnavailableError(absl::StrCat("cuBLAS has no function ", missing));
  }
  cublasHandle_t handle = nullptr;
  if (absl::Status s = BlasStatus(out->f_->create(&handle), "create"); !s.ok()) return s;
  out->handle_ = handle;
  return out;
}

Cublas::~Cublas() {
  if (handle_ != nullptr) f_->destroy(static_cast<cublasHandle_t>(handle_));
}

// cuBLAS counts by columns: a matrix row by row is its transpose there.

absl::Status Cublas::MultiplyTransposed(cudaStream_t stream, int tokens, int columns, int rows,
                                        float alpha, const __half* y, int y_stride,
                                        const __half* m, __half* x) {
  if (tokens == 0 || columns == 0) return absl::OkStatus();
  const cublasHandle_t handle = static_cast<cublasHandle_t>(handle_);
  const float zero = 0;
  if (absl::Status s = BlasStatus(f_->set_stream(handle, stream), "stream"); !s.ok()) return s;
  return BlasStatus(f_->gemm(handle, CUBLAS_OP_N, CUBLAS_OP_T, columns, tokens, rows, &alpha, m,
                             CUDA_R_16F, columns, y, CUDA_R_16F, y_stride, &zero, x, CUDA_R_16F,
                             columns, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
                    "gemm");
}

absl::Status Cublas::MultiplyByTransposed(cudaStream_t stream, int rows, int tokens, int columns,
                                          float alpha, const __half* m, const __half* x, __half* y,
                                          int y_stride) {
  if (tokens == 0 || rows == 0) return absl::OkStatus();
  const cublasHandle_t handle = static_cast<cublasHandle_t>(handle_);
  const float zero = 0;
  if (absl::Status s = BlasStatus(f_->set_stream(handle, stream), "stream"); !s.ok()) return s;
  return BlasStatus(f_->gemm(handle, CUBLAS_OP_T, CUBLAS_OP_N, tokens, rows, columns, &alpha, x,
                             CUDA_R_16F, columns, m, CUDA_R_16F, columns, &zero, y, CUDA_R_16F,
                             y_stride, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
                    "gemm");
}

}  // namespace kvcask
