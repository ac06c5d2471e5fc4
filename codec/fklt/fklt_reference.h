// `fklt` in double precision and plain loops: FORMAT.md read aloud, for tests. Shares with the
// codec only the profile it reads; its entropy decoder takes the frequencies from the file.
//
// Works on un-rotated vectors: [tokens][D], the coded tokens of one tile.
#pragma once

#include <absl/status/statusor.h>
#include <absl/types/span.h>

#include <cstdint>
#include <vector>

#include "codec/fklt/fklt_profile.h"

namespace kvcask::fklt {

using Matrix = std::vector<std::vector<double>>;

// y = U L^T (x - mu) of one token.
std::vector<double> ReferenceForward(const GroupModel& g, const std::vector<double>& x);
// x = mu + L^-T U^T y.
std::vector<double> ReferenceInverse(const GroupModel& g, const std::vector<double>& y);

// A coded tile's integers.
struct ReferenceTile {
  int step_exponent = 0;
  int kcap = 0;
  int table_set = 0;
  std::vector<int> amplitude;           // [T]
  std::vector<int> step;                // [T]
  std::vector<std::vector<int>> q;      // [T][D]; rows that are not there are 0
  std::vector<std::vector<int>> table;  // [T][D]: class, -1 where absent
};

// Decodes segments by searching and dividing. Empty when the bytes are not a coded tile.
absl::StatusOr<ReferenceTile> ReferenceParse(const FkltProfile& profile, const GroupModel& g,
                                             absl::Span<const uint8_t> tile, int tokens);

// The sinks of a tile of mode 2: how many bytes they take at its end, and x^ of each.
size_t ReferenceSinkBytes(const GroupModel& g, int sinks);
Matrix ReferenceSinks(const GroupModel& g, int sinks, absl::Span<const uint8_t> bytes);

// y^ of a tile, and x^.
Matrix ReferenceDequantise(const FkltProfile& profile, const ReferenceTile& tile);
Matrix ReferenceDecode(const FkltProfile& profile, const GroupModel& g, const ReferenceTile& tile);

// What FORMAT.md 5 chooses for a token, from its y.
struct ReferenceToken {
  double sensitivity = 1;  // w
  double step_class = 0;   // before rounding and clamping
};
ReferenceToken ReferenceAnalyse(const GroupModel& g, const std::vector<double>& y);
// The amplitude class of a token before rounding and clamping.
double ReferenceAmplitude(const FkltProfile& profile, const GroupModel& g,
                          const ReferenceTile& tile, int token, const std::vector<double>& y);

// The certificate (FORMAT.md 5.4), from what was put and what came back; sinks add theirs
// (5.5), from their x.
double ReferenceCertificate(const FkltProfile& profile, const GroupModel& g, int preset,
                            int all_tokens, const Matrix& y, const Matrix& decoded_y);
double ReferenceSinkCertificate(const FkltProfile& profile, const GroupModel& g, int preset,
                                int all_tokens, const Matrix& x, const Matrix& decoded_x);

}  // namespace kvcask::fklt
