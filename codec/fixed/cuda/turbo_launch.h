// The turbo kernels for any head_dim, dtype and strides: a row in shared memory, slower than those
// that turbo_kernels.cu has for wide rows of the usual head_dims.
#pragma once

#include "codec/fixed/cuda/fixed_kernels.h"

namespace kvcask {

cudaError_t LaunchAnyTurboEncode(const FixedLaunch& launch, int bits, int head_dim, bool wide);
cudaError_t LaunchAnyTurboDecode(const FixedLaunch& launch, int bits, int head_dim, bool wide);

}  // namespace kvcask
