// What sessions of a codec take whose sizes depend on the data (fklt), from caches of their
// kind: every page of every sample is really encoded, and a session of any length is made up of
// pages like theirs.
//
// A sample says of each group of layers what a tile takes in its first page (where sinks are) and
// in the full pages after it, on average; of a chunk everything else follows from its shape. A
// session of n tokens is then one first page, the full pages after it, and of the last,
// incomplete one its share of tokens. So each sample gives one size, and samples differ as their
// texts do. The mean is the samples' mean m; with s their standard deviation, k their number and t
// Student's t of k - 1 degrees (95 %, both sides),
//
//   one more session of their kind lies within   m +- t s sqrt(1 + 1/k),
//   the mean of many such sessions within        m +- t s / sqrt(k).
//
// Pages of one text are alike but not the same: a sample's mean over few pages scatters more than
// a long session does, so that intervals of long sessions from short samples are on the safe side.
//
// Not thread-safe.
#pragma once

#include <absl/status/statusor.h>
#include <absl/types/span.h>

#include <cstdint>
#include <vector>

#include "codec/api/codec.h"
#include "codec/format/chunk.h"

namespace kvcask {

struct SampledSize {
  uint64_t raw_bytes = 0;  // exact
  double mean_bytes = 0;   // chunks, whole
  // Half widths; negative: fewer than two samples tell nothing about it.
  double one_more_bytes = -1;
  double mean_of_many_bytes = -1;
  double ratio() const { return mean_bytes == 0 ? 0 : static_cast<double>(raw_bytes) / mean_bytes; }
};

class SizeSampler {
 public:
  // `codec` is bound to the whole model and outlives this. profile: a fingerprint is kept in each
  // chunk.
  SizeSampler(const Codec* codec, Quality quality, bool profile)
      : codec_(*codec), quality_(quality), profile_(profile) {}

  // Encodes a cache of `tokens` tokens, positions consecutive from first_position. token_ids: of
  // each token, or none. INVALID_ARGUMENT: fewer than two pages, which would say nothing about the
  // ones after the first; planes or a dtype that are not the codec's or the samples' before; what
  // the codec refuses, with the page.
  absl::Status Add(const ConstKvView& cache, int64_t tokens, uint32_t first_position,
                   absl::Span<const uint32_t> token_ids);

  // Of a sealed session of `tokens`, 1 to 2^31. FAILED_PRECONDITION: no samples.
  absl::StatusOr<SampledSize> Project(int64_t tokens) const;

  int samples() const { return static_cast<int>(samples_.size()); }

 private:
  struct Sample {
    std::vector<double> first, later;  // of a full page: bytes of each group's tile
  };
  // Of a chunk of `tokens` whose tiles are of these sizes at a full page.
  double PageBytes(const std::vector<double>& tiles, int tokens) const;

  const Codec& codec_;
  const Quality quality_;
  const bool profile_;
  Dtype dtype_ = Dtype::kBf16;
  bool token_ids_ = false;  // all samples have them, or none
  std::vector<Sample> samples_;
};

// Of Student's t, 95 % on both sides.
double StudentT95(int degrees);

}  // namespace kvcask
