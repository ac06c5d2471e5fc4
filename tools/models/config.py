"""What a model is, as far as its forward pass and its KV cache go.

ModelConfig is plain data: gguf_reader fills it from a GGUF header, forward computes with
it, hf_export writes it as config.json, cache writes its geometry beside a cache.
"""

import dataclasses
import json

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotation of the keys and queries of one layer, rotate-half style: element i turns
    with element i + dims / 2, by position * inv_freq[i] radians.

    factors: divisors of the plain frequencies theta^(-2i/dims), one a pair (llama3
    scaling), or empty. linear: divisor of all of them (position interpolation).
    """

    theta: float
    dims: int
    linear: float = 1.0
    factors: tuple = ()

    def inv_freq(self):
        """dims / 2 radians a position, as Python floats."""
        plain = [self.theta ** (-2.0 * i / self.dims) / self.linear
                 for i in range(self.dims // 2)]
        return [f / d for f, d in zip(plain, self.factors)] if self.factors else plain

    @property
    def is_plain(self):
        return self.linear == 1.0 and not self.factors


@dataclasses.dataclass(frozen=True)
class Layer:
    """window: tokens a query sees, itself included; 0 means all before it."""

    rope: Rope
    window: int = 0


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes in elements. `layers` has one entry a layer, first layer first."""

    arch: str
    name: str
    vocab: int
    hidden: int
    ffn: int
    q_heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    context: int
    layers: tuple
    tied: bool = True           # output matrix = embedding
    qkv_bias: bool = False      # qwen2
    qk_norm: bool = False       # qwen3, gemma3
    sandwich_norm: bool = False  # gemma3: a norm after attention and after the MLP too
    gelu: bool = False          # gemma3: tanh GELU instead of SiLU
    embed_scale: float = 1.0    # gemma3: sqrt(hidden)

    def __post_init__(self):
        if self.arch not in ARCHITECTURES:
            raise ValueError(f"architecture {self.arch!r} is not one of {ARCHITECTURES}")
        if self.q_heads % self.kv_heads:
            raise ValueError(f"{self.q_heads} query heads do not divide over "
                             f"{self.kv_heads} KV heads")

    @property
    def uniform(self):
        """True where every layer has the same window and rotation."""
        return len(set(self.layers)) == 1

    @property
    def kv_bytes_per_token(self):
        """bf16 bytes of K and V that one token holds in all layers."""
        return 2 * 2 * len(self.layers) * self.kv_heads * self.head_dim

    def geometry(self):
        """The KV geometry as a JSON-ready dict, in the form of codec/profile/FORMAT.md:
        {"layers": [{"repeat", "kind", "window", "streams", "rope"}]}."""
        streams = [{"kind": kind, "heads": self.kv_heads, "head_dim": self.head_dim}
                   for kind in ("k", "v")]
        runs = []
        for layer in self.layers:
            if runs and runs[-1][0] == layer:
                runs[-1][1] += 1
            else:
                runs.append([layer, 1])
        out = []
        for layer, repeat in runs:
            rope = {"style": "rotate_half", "dims": layer.rope.dims}
            if layer.rope.is_plain:
                rope["theta"] = layer.rope.theta
            else:
                rope["inv_freq"] = layer.rope.inv_freq()
            window = {"window": layer.window} if layer.window else {}
            out.append({"repeat": repeat, "kind": "sliding" if window else "full", **window,
                        "streams": streams, "rope": rope})
        return {"layers": out}

    def metadata(self, tokens, first_position=0):
        """The strings a cache file's header carries (safetensors metadata).

        Layer 0 speaks for all layers; where they differ, "geometry" holds the whole of
        geometry() as JSON and goes before the rest.
        """
        rope = self.layers[0].rope
        meta = {
            "model": self.name,
            "layers": str(len(self.layers)), "kv_heads": str(self.kv_heads),
            "q_heads": str(self.q_heads), "head_dim": str(self.head_dim),
            "tokens": str(tokens), "rope": "rotate_half", "rope_theta": str(rope.theta),
            "rope_dim": str(rope.dims), "first_position": str(first_position),
            "layout": "[kv_head][token][head_dim]", "dtype": "bf16",
        }
        if not (self.uniform and rope.is_plain and self.layers[0].window == 0):
            meta["geometry"] = json.dumps(self.geometry(), separators=(",", ":"))
        return meta
