#include "codec/recipe/recipe.h"

namespace kvcask {
namespace {

// The files of presets/, which recipe_test.cc holds against these.
constexpr RecipePreset kPresets[] = {
    {"default", R"(# Near enough to lossless on every model measured: about 2.5x.
k: int8 sinks=4
v: int4 sinks=4
latent: int8
)"},
    {"k-only", R"(# Keys alone are coded: one half of an ablation by stream.
k: turbo4
v: raw
latent: raw
)"},
    {"kivi4", R"(# KIVI with sinks: keys by channel over 32 tokens, values by token.
k: channel4 sinks=4
v: int4 sinks=4
latent: int4
)"},
    {"lattice-boundary", R"(# E8 points everywhere, sinks kept, finer keys and values at both ends of the model.
all: e8 q=16 sinks=4
layers 0-1 -2--1: e8 q=38 sinks=4
)"},
    {"turbo-rescue", R"(# TurboQuant+'s rescue of models with large, uneven keys (Qwen): 8-bit keys, turbo values.
k: int8 group=32 mean=off
v: turbo3
latent: int8
)"},
    {"v-only", R"(# Values alone are coded: the other half.
k: raw
v: turbo4
latent: raw
)"},
    {"vllm-3bit-nc", R"(# vLLM's turboquant_3bit_nc with its raw boundary layers.
k: turbo3 signs=off mean=off
v: int3 group=row mean=off
latent: raw
layers 0-1 -2--1: raw
)"},
    {"vllm-4bit-nc", R"(# vLLM's turboquant_4bit_nc with its raw boundary layers.
k: turbo4 signs=off mean=off
v: int4 group=row mean=off
latent: raw
layers 0-1 -2--1: raw
)"},
    {"vllm-k3v4-nc", R"(# vLLM's turboquant_k3v4_nc with its raw boundary layers.
k: turbo3 signs=off mean=off
v: int4 group=row mean=off
latent: raw
layers 0-1 -2--1: raw
)"},
    {"vllm-k8v4", R"(# vLLM's turboquant_k8v4 as it serves dense models: the first and last two layers stay raw,
# which its own ratio of 2.6 leaves out.
k: fp8 scale=off mean=off
v: int4 group=row mean=off
latent: raw
layers 0-1 -2--1: raw
)"},
};

}  // namespace

absl::Span<const RecipePreset> RecipePresets() { return kPresets; }

}  // namespace kvcask
