// One plane of a view, as kernels want it: see BasicPlaneView. Strides in bytes.
#pragma once

#include <cstdint>

namespace kvcask {

struct DevicePlane {
  uint8_t* data;
  int64_t head_stride, token_stride, dim_stride;
};

}  // namespace kvcask
