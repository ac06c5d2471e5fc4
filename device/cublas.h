// cuBLAS, found at run time: a binary that has this starts where there is none.
//
// One thread at a time for each Cublas.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <memory>

namespace kvcask {

class Cublas {
 public:
  // UNAVAILABLE says which library was looked for and why it can't be used.
  static absl::StatusOr<std::unique_ptr<Cublas>> Load();
  ~Cublas();

  // x [tokens][columns] = alpha y^T m: y [rows][y_stride] (token t is column t of y), m [rows]
  // [columns]; fp16 in and out, fp32 sums. All row by row.
  absl::Status MultiplyTransposed(cudaStream_t stream, int tokens, int columns, int rows,
                                  float alpha, const __half* y, int y_stride, const __half* m,
                                  __half* x);
  // y [rows][y_stride] = alpha m x^T: m [rows][columns], x [tokens][columns]; as above.
  absl::Status MultiplyByTransposed(cudaStream_t stream, int rows, int tokens, int columns,
                                    float alpha, const __half* m, const __half* x, __half* y,
                                    int y_stride);

 private:
  Cublas() = default;
  struct Functions;
  std::unique_ptr<Functions> f_;
  void* handle_ = nullptr;
};

}  // namespace kvcask
