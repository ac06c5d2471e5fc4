#include "codec/raw/raw_tile.h"

#include <absl/strings/str_cat.h>

#include <algorithm>

#include "codec/api/jobs.h"
#include "codec/base/strided.h"
#include "codec/transform/rope.h"

namespace kvcask {
namespace {

// One head's wanted rows, by way of fp32.
void ConvertHead(const uint8_t* rows, const PlaneInfo& plane, int out_plane, int head,
                 const DecodeJob& job, const Rope* rope, const RopeTable& shift,
                 absl::Span<float> scratch) {
  const int tokens = job.token_end - job.token_begin;
  LoadRow(rows, static_cast<int64_t>(DtypeSize(job.source_dtype)), job.source_dtype,
          static_cast<size_t>(tokens) * plane.head_dim, scratch.data());
  if (rope != nullptr) ApplyRope(*rope, shift, tokens, plane.head_dim, scratch.data());
  StoreHead(scratch.data(), job.destination, out_plane, head, 0, tokens, plane.head_dim);
}

}  // namespace

size_t RawTileBytes(const Geometry& g, const Group& group, int tokens, Dtype dtype) {
  if (tokens < 0) return 0;
  return static_cast<size_t>(g.ElementsPerToken(group.layer_begin, group.layer_end)) * tokens *
         DtypeSize(dtype);
}

void EncodeRawTile(const Geometry& g, const Group& group, const ConstKvView& source, int tokens,
                   uint8_t* out) {
  const std::vector<PlaneInfo> planes = ListPlanes(g, group.layer_begin, group.layer_end);
  for (size_t p = 0; p < planes.size(); ++p) {
    for (int h = 0; h < planes[p].heads; ++h) {
      GatherHead(source, static_cast<int>(p), h, 0, tokens, planes[p].head_dim, out);
      out += static_cast<size_t>(tokens) * planes[p].head_dim * DtypeSize(source.dtype);
    }
  }
}

absl::Status DecodeRawTile(const Geometry& g, const Group& group, absl::Span<const uint8_t> tile,
                           const DecodeJob& job, Workspace& workspace) {
  const size_t expected = RawTileBytes(g, group, job.tokens, job.source_dtype);
  if (tile.size() != expected) {
    return absl::DataLossError(absl::StrCat("raw tile of group ", job.group, ": ", tile.size(),
                                            " bytes; expected ", expected));
  }
  const size_t element = DtypeSize(job.source_dtype);
  const int wanted = job.token_end - job.token_begin;
  const uint8_t* p = tile.data();
  int out_plane = 0;
  for (const PlaneInfo& plane : ListPlanes(g, group.layer_begin, group.layer_end)) {
    const size_t head_bytes = static_cast<size_t>(job.tokens) * plane.head_dim * element;
    if (plane.layer < job.layer_begin || plane.layer >= job.layer_end) {
      p += head_bytes * plane.heads;
      continue;
    }
    const Rope& rope = g.layers[plane.layer].rope;
    const bool turn =
        plane.kind == StreamKind::kK && job.position_offset != 0 && rope.style != RopeStyle::kNone;
    const bool convert = turn || job.destination.dtype != job.source_dtype;
    RopeTable shift;
    if (turn) shift = MakeRopeShift(rope, job.position_offset);
    absl::Span<float> scratch;
    if (convert) {
      const size_t floats = static_cast<size_t>(wanted) * plane.head_dim;
      scratch = {reinterpret_cast<float*>(workspace.Get(floats * sizeof(float)).data()), floats};
    }
    for (int h = 0; h < plane.heads; ++h, p += head_bytes) {
      const uint8_t* rows = p + static_cast<size_t>(job.token_begin) * plane.head_dim * element;
      if (convert) {
        ConvertHead(rows, plane, out_plane, h, job, turn ? &rope : nullptr, shift, scratch);
      } else {
        ScatterHead(rows, job.destination, out_plane, h, 0, wanted, plane.head_dim);
      }
    }
    ++out_plane;
  }
  return absl::OkStatus();
}

}  // namespace kvcask
