// The Kakeya codecs: block PCA, spherical k-means and a residual, sparse (v1.0) or coded after
// a random rotation (v1.2, v1.3), with v1.3-PPL's guardrails from a profile. docs/kakeya.md says
// where they come from and what they do; FORMAT.md has the bytes.
//
// A tile holds a page of one layer, so a block here is at most 128 tokens, with a skeleton of
// its own: the published codecs' blocks of 512 tokens are codec/kakeya/cache.h's.
//
// Plain code for the CPU. NaN and infinity are refused (INVALID_ARGUMENT). No prediction of
// quality is made. Thread-safe.
#pragma once

#include <absl/status/statusor.h>

#include <memory>

#include "codec/api/codec.h"

namespace kvcask {

absl::StatusOr<std::unique_ptr<Codec>> MakeKakeya10Codec(const CodecSpec& spec);
absl::StatusOr<std::unique_ptr<Codec>> MakeKakeya12Codec(const CodecSpec& spec);
absl::StatusOr<std::unique_ptr<Codec>> MakeKakeya13Codec(const CodecSpec& spec);
absl::StatusOr<std::unique_ptr<Codec>> MakeKakeya13PplCodec(const CodecSpec& spec);

// Of all four: the name of a recipe (recipes/), or changes of the parameters as JSON; params.h.
absl::StatusOr<std::string> CanonicalKakeyaSetting(absl::string_view setting);

}  // namespace kvcask
