// Tables for tests and benchmarks: each class a Gaussian of the width that its number stands for
// (FORMAT.md 3.3), trimmed at some four sigmas, shift bits where it is wide.
#pragma once

#include "codec/entropy/static_tables.h"

namespace kvcask {

struct RawTables {
  std::vector<int16_t> shape;  // [42][3]
  std::vector<int16_t> freq;
};

RawTables GaussianTables();

// sigma / step of a class.
double ClassSigma(int table);

}  // namespace kvcask
