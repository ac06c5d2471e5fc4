#include "codec/recipe/sampled_size.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cmath>
#include <iterator>

#include "codec/api/jobs.h"

namespace kvcask {
namespace {

absl::Status At(int64_t page, const absl::Status& s) {
  return absl::Status(s.code(), absl::StrCat("page ", page, ": ", s.message()));
}

}  // namespace

double StudentT95(int degrees) {
  constexpr double kT[] = {12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
                           2.201,  2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086};
  if (degrees < 1) return HUGE_VAL;
  if (degrees <= static_cast<int>(std::size(kT))) return kT[degrees - 1];
  // Cornish and Fisher's first terms about the normal quantile: right to .001 from here on.
  const double z = 1.959964, n = degrees;
  return z + (z * z * z + z) / (4 * n) + (5 * std::pow(z, 5) + 16 * z * z * z + 3 * z) / (96 * n * n);
}

absl::Status SizeSampler::Add(const ConstKvView& cache, int64_t tokens, uint32_t first_position,
                              absl::Span<const uint32_t> token_ids) {
  const Geometry& g = codec_.geometry();
  const auto planes = ListPlanes(g, 0, static_cast<int>(g.layers.size()));
  if (cache.planes.size() != planes.size()) {
    return absl::InvalidArgumentError(absl::StrCat("a sample has ", cache.planes.size(),
                                                   " planes; expected ", planes.size()));
  }
  if (tokens < 2 * kPageTokens || tokens > int64_t{1} << 31) {
    return absl::InvalidArgumentError(absl::StrCat("a sample has ", tokens,
                                                   " tokens; expected at least two pages of ",
                                                   kPageTokens));
  }
  if (!token_ids.empty() && static_cast<int64_t>(token_ids.size()) != tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("a sample has ", token_ids.size(), " token ids for ", tokens, " tokens"));
  }
  if (!samples_.empty() && (cache.dtype != dtype_ || token_ids.empty() == token_ids_)) {
    return absl::InvalidArgumentError(
        "a sample's dtype, or whether it has token ids, differs from the samples' before");
  }
  const size_t groups = codec_.groups().size();
  Sample sample;
  sample.later.resize(groups);
  Workspace workspace;
  std::vector<std::vector<uint8_t>> memory(groups);
  std::vector<std::vector<ConstPlaneView>> views(groups);
  std::vector<uint32_t> positions(kPageTokens);
  const int64_t pages = tokens / kPageTokens;  // a last, incomplete one is left out
  for (int64_t page = 0; page < pages; ++page) {
    const int64_t begin = page * kPageTokens;
    for (int t = 0; t < kPageTokens; ++t) {
      positions[t] = first_position + static_cast<uint32_t>(begin + t);
    }
    std::vector<EncodeJob> jobs(groups);
    for (size_t i = 0; i < groups; ++i) {
      const Group group = codec_.groups()[i];
      EncodeJob& job = jobs[i];
      views[i].clear();
      for (size_t p = 0; p < planes.size(); ++p) {
        if (planes[p].layer < group.layer_begin || planes[p].layer >= group.layer_end) continue;
        ConstPlaneView view = cache.planes[p];
        view.data += begin * view.token_stride;
        views[i].push_back(view);
      }
      memory[i].resize(codec_.MaxTileBytes(static_cast<int>(i), kPageTokens, cache.dtype));
      job.group = static_cast<int>(i);
      job.tokens = kPageTokens;
      job.source = {cache.dtype, views[i], {}};
      job.positions = positions;
      if (!token_ids.empty()) job.token_ids = token_ids.subspan(begin, kPageTokens);
      job.quality = quality_;
      job.destination = absl::MakeSpan(memory[i]);
    }
    if (absl::Status s = codec_.Encode(absl::MakeSpan(jobs), workspace); !s.ok()) {
      return At(page, s);
    }
    for (size_t i = 0; i < groups; ++i) {
      if (!jobs[i].status.ok()) return At(page, jobs[i].status);
      const double bytes = static_cast<double>(jobs[i].bytes);
      if (page == 0) {
        sample.first.push_back(bytes);
      } else {
        sample.later[i] += bytes / static_cast<double>(pages - 1);
      }
    }
  }
  dtype_ = cache.dtype;
  token_ids_ = !token_ids.empty();
  samples_.push_back(std::move(sample));
  return absl::OkStatus();
}

double SizeSampler::PageBytes(const std::vector<double>& tiles, int tokens) const {
  ChunkHeader header;
  header.tokens = tokens;
  header.positions.resize(tokens);
  for (int t = 0; t < tokens; ++t) header.positions[t] = static_cast<uint32_t>(t);
  if (token_ids_) header.token_ids.resize(tokens);
  if (profile_) header.profile.emplace();
  std::vector<size_t> sizes;
  for (double bytes : tiles) {
    sizes.push_back(static_cast<size_t>(std::lround(bytes * tokens / kPageTokens)));
  }
  return static_cast<double>(ChunkSize(header, sizes));
}

absl::StatusOr<SampledSize> SizeSampler::Project(int64_t tokens) const {
  if (samples_.empty()) return absl::FailedPreconditionError("project: no samples");
  if (tokens < 1 || tokens > int64_t{1} << 31) {
    return absl::InvalidArgumentError(
        absl::StrCat("project: ", tokens, " tokens; expected 1 to 2^31"));
  }
  const int64_t pages = tokens / kPageTokens;
  const int rest = static_cast<int>(tokens % kPageTokens);
  std::vector<double> sizes;
  for (const Sample& sample : samples_) {
    double bytes = 0;
    if (pages > 0) bytes += PageBytes(sample.first, kPageTokens);
    if (pages > 1) {
      bytes += static_cast<double>(pages - 1) * PageBytes(sample.later, kPageTokens);
    }
    if (rest > 0) bytes += PageBytes(pages == 0 ? sample.first : sample.later, rest);
    sizes.push_back(bytes);
  }
  const double k = static_cast<double>(sizes.size());
  SampledSize out;
  out.raw_bytes = static_cast<uint64_t>(tokens) *
                  static_cast<uint64_t>(codec_.geometry().ElementsPerToken()) * DtypeSize(dtype_);
  for (double bytes : sizes) out.mean_bytes += bytes / k;
  if (sizes.size() < 2) return out;
  double squares = 0;
  for (double bytes : sizes) squares += (bytes - out.mean_bytes) * (bytes - out.mean_bytes);
  const double half = StudentT95(static_cast<int>(sizes.size()) - 1) * std::sqrt(squares / (k - 1));
  out.one_more_bytes = half * std::sqrt(1 + 1 / k);
  out.mean_of_many_bytes = half / std::sqrt(k);
  return out;
}

}  // namespace kvcask
