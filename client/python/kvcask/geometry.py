"""The shape of a model's KV cache: a list of layers (proto/kvcask/v1/geometry.proto)."""

import dataclasses
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from kvcask.v1 import geometry_pb2 as pb

K, V, LATENT = pb.STREAM_KIND_K, pb.STREAM_KIND_V, pb.STREAM_KIND_LATENT

_STYLES = {"none": 0, "rotate_half": 1, "interleaved": 2}


@dataclasses.dataclass(frozen=True)
class Geometry:
    """A model's geometry. Compare and pass around freely: immutable."""

    proto: pb.Geometry

    @classmethod
    def uniform(cls, layers: int, kv_heads: int, head_dim: int, rope: str = "rotate_half",
                rope_theta: float = 10000.0, rope_dim: Optional[int] = None,
                windows: Optional[Mapping[int, int]] = None,
                inverse_frequencies: Optional[Sequence[float]] = None,
                attention_scale: float = 1.0) -> "Geometry":
        """Layers that all have K and V of [kv_heads, tokens, head_dim].

        rope: "rotate_half", "interleaved" or "none". rope_dim: leading elements that turn
        (default: head_dim). windows: layer -> window in tokens, of sliding layers.
        inverse_frequencies: rope_dim / 2 radians a position, instead of the textbook
        rope_theta ** (-2 i / rope_dim).
        """
        if rope not in _STYLES:
            raise ValueError(f"rope is {rope!r}, expected one of {sorted(_STYLES)}")
        g = pb.Geometry()
        dim = head_dim if rope_dim is None else rope_dim
        freqs = (list(inverse_frequencies) if inverse_frequencies is not None else
                 [rope_theta ** (-2.0 * i / dim) for i in range(dim // 2)])
        for i in range(layers):
            layer = g.layers.add(kind=pb.Layer.KIND_FULL)
            if windows and i in windows:
                layer.kind = pb.Layer.KIND_SLIDING
                layer.window = windows[i]
            layer.streams.add(kind=K, heads=kv_heads, head_dim=head_dim)
            layer.streams.add(kind=V, heads=kv_heads, head_dim=head_dim)
            if rope != "none":
                layer.rope.style = _STYLES[rope]
                layer.rope.dims = dim
                layer.rope.inverse_frequencies.extend(freqs)
                layer.rope.attention_scale = attention_scale
        return cls(g)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "Geometry":
        """From the metadata of a cache file whose layers are all alike (keys layers,
        kv_heads, head_dim, rope, rope_theta, rope_dim)."""
        m: Dict[str, str] = dict(metadata)
        missing = [k for k in ("layers", "kv_heads", "head_dim") if k not in m]
        if missing:
            raise ValueError(f"the metadata lacks {', '.join(missing)}")
        return cls.uniform(int(m["layers"]), int(m["kv_heads"]), int(m["head_dim"]),
                           m.get("rope", "rotate_half"), float(m.get("rope_theta", 10000.0)),
                           int(m["rope_dim"]) if "rope_dim" in m else None)

    @property
    def layers(self) -> int:
        return len(self.proto.layers)

    def streams(self, layer: int) -> List[Tuple[int, int, int]]:
        """(kind, heads, head_dim) of each stream of a layer, in payload order."""
        return [(s.kind, s.heads, s.head_dim) for s in self.proto.layers[layer].streams]
