// A model's layers from its config.json (Hugging Face): which keep a KV cache of their own, of
// what shape, and how far back. The rules, in order:
//
//   1. `kv_lora_rank` (MLA: DeepSeek V2/V3, Kimi K2): every layer is latent, one stream of
//      kv_lora_rank + qk_rope_head_dim. MlaCache::kDecompressed: every layer is full, for engines
//      that keep what the latent expands to: num_attention_heads keys of qk_nope_head_dim +
//      qk_rope_head_dim and values of v_head_dim. Their rope is left out: the last elements of a
//      key turn, which Rope cannot say, so means and positions are as of keys that don't turn.
//   2. `layer_types`: followed (full_attention, sliding_attention, chunked_attention).
//   3. Without it, a pattern: sliding_window_pattern n (every n-th layer full: Gemma 3, Cohere 2),
//      no_rope_layers (Llama 4: layers without RoPE are full, the others chunked), use_sliding_window
//      with max_window_layers (Qwen 2: layers before it full).
//   4. Without a pattern: sliding_window or attention_chunk_size makes every layer so; neither
//      makes all full.
//   5. num_kv_shared_layers n > 0 (Gemma 3n, 4): the last n layers use the KV of the last layer
//      before them of their own kind. 0 shares none.
//
// head_dim falls back to hidden_size / num_attention_heads; full layers of models with
// global_head_dim and num_global_key_value_heads take those. Mamba-like layers are refused.
//
// Thread-safe: pure functions.
#pragma once

#include <absl/status/statusor.h>
#include <absl/strings/string_view.h>

#include <string>

#include "codec/base/geometry.h"

namespace kvcask {

inline constexpr size_t kMaxModelConfigBytes = size_t{1} << 20;

// What an engine keeps of multi-head latent attention (DeepSeek-AI 2024, DeepSeek-V2).
enum class MlaCache { kLatent, kDecompressed };

// INVALID_ARGUMENT names the key, what was found and what was expected. UNIMPLEMENTED, by name:
// RoPE scalings that inverse frequencies cannot express, layers that keep no KV cache. The
// result has passed Validate. Multimodal configs: their text_config. kDecompressed of a model
// without latent layers: INVALID_ARGUMENT.
absl::StatusOr<Geometry> GeometryFromModelConfig(absl::string_view json,
                                                 MlaCache mla = MlaCache::kLatent);

// "30 full (K 3 x 64, V 3 x 64)", kinds joined by "; ": for people.
std::string DescribeLayers(const Geometry& g);

}  // namespace kvcask
