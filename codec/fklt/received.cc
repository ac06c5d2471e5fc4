#include "codec/fklt/received.h"

#include <algorithm>

#include "codec/base/strided.h"
#include "codec/transform/rope.h"

namespace kvcask::fklt {

std::vector<TokenRun> ListRuns(absl::Span<const uint32_t> positions, uint32_t sinks,
                               bool want_sinks) {
  std::vector<TokenRun> runs;
  int index = 0;
  for (int t = 0; t < static_cast<int>(positions.size()); ++t) {
    if ((positions[t] < sinks) != want_sinks) continue;
    if (runs.empty() || runs.back().end != t) runs.push_back({t, t, index});
    runs.back().end = t + 1;
    ++index;
  }
  return runs;
}

int CountTokens(absl::Span<const TokenRun> runs) {
  int n = 0;
  for (const TokenRun& run : runs) n += run.end - run.begin;
  return n;
}

TokenRun Clip(const TokenRun& run, const DecodeJob& job) {
  TokenRun out;
  out.begin = std::max(run.begin, job.token_begin);
  out.end = std::max(out.begin, std::min(run.end, job.token_end));
  out.index = run.index + out.begin - run.begin;
  return out;
}

int WantedPlane(const GroupCoder& group, const MemberPlace& member, const DecodeJob& job) {
  if (member.layer < job.layer_begin || member.layer >= job.layer_end) return -1;
  return member.plane - group.first_plane(job.layer_begin);
}

size_t KeepReceived(const GroupCoder& group, const ConstKvView& source,
                    absl::Span<const TokenRun> runs, uint8_t* out) {
  const size_t element = DtypeSize(source.dtype);
  uint8_t* p = out;
  for (const MemberPlace& m : group.members()) {
    for (const TokenRun& run : runs) {
      GatherHead(source, m.plane, m.head, run.begin, run.end, m.head_dim, p);
      p += static_cast<size_t>(run.end - run.begin) * m.head_dim * element;
    }
  }
  return p - out;
}

void RestoreReceived(const GroupCoder& group, absl::Span<const uint8_t> bytes,
                     absl::Span<const TokenRun> runs, const DecodeJob& job, float* scratch) {
  const size_t element = DtypeSize(job.source_dtype);
  const size_t tokens = CountTokens(runs);
  for (const MemberPlace& m : group.members()) {
    const int plane = WantedPlane(group, m, job);
    if (plane < 0) continue;
    const bool turn = m.rope != nullptr && job.position_offset != 0;
    RopeTable shift;
    if (turn) shift = MakeRopeShift(*m.rope, job.position_offset);
    const uint8_t* rows = bytes.data() + static_cast<size_t>(m.offset) * tokens * element;
    for (const TokenRun& run : runs) {
      const TokenRun part = Clip(run, job);
      const int n = part.end - part.begin;
      if (n == 0) continue;
      const uint8_t* from = rows + static_cast<size_t>(part.index) * m.head_dim * element;
      const int to = part.begin - job.token_begin;
      if (!turn && job.destination.dtype == job.source_dtype) {
        ScatterHead(from, job.destination, plane, m.head, to, to + n, m.head_dim);
        continue;
      }
      LoadRow(from, static_cast<int64_t>(element), job.source_dtype,
              static_cast<size_t>(n) * m.head_dim, scratch);
      if (turn) ApplyRope(*m.rope, shift, n, m.head_dim, scratch);
      StoreHead(scratch, job.destination, plane, m.head, to, to + n, m.head_dim);
    }
  }
}

}  // namespace kvcask::fklt
