"""A KV cache in memory: what goes into the daemon and what comes back."""

import dataclasses
from typing import Any, List, Optional, Sequence

import numpy as np

from kvcask.arrays import as_array, to_float32
from kvcask.geometry import Geometry


@dataclasses.dataclass
class Cache:
    """K and V of a run of tokens.

    keys, values: one array a layer, [kv_heads, tokens, head_dim]; keys after RoPE, as
    engines hold them. All of one dtype: "bf16" (uint16 bit patterns), "f16" or "f32".
    Layers that keep nothing (shared, or outside a get's range) are None.
    token_ids: [tokens] uint32, or None. token_begin: index in the session of the first
    token. first_position: RoPE position of the session's token 0.
    """

    keys: List[Optional[np.ndarray]]
    values: List[Optional[np.ndarray]]
    geometry: Geometry
    dtype: str = "bf16"
    token_ids: Optional[np.ndarray] = None
    token_begin: int = 0
    first_position: int = 0

    @classmethod
    def from_arrays(cls, keys: Sequence[Any], values: Sequence[Any],
                    geometry: Optional[Geometry] = None, token_ids: Optional[Sequence[int]] = None,
                    first_position: int = 0, **rope: Any) -> "Cache":
        """From arrays or tensors of [kv_heads, tokens, head_dim], a layer each.

        Without a geometry, one is made of their shapes and `rope` (the arguments of
        Geometry.uniform: rope, rope_theta, rope_dim, ...). ValueError names the layer whose
        shape or dtype differs from the first's.
        """
        if not keys or len(keys) != len(values):
            raise ValueError(f"found {len(keys)} layers of keys and {len(values)} of values, "
                             "expected as many of both, at least one")
        arrays = []
        for name, stream in (("keys", keys), ("values", values)):
            out = []
            for i, x in enumerate(stream):
                a, dtype = as_array(x)
                if a.ndim != 3:
                    raise ValueError(f"{name}[{i}] has shape {a.shape}, expected "
                                     "[kv_heads, tokens, head_dim]")
                out.append((a, dtype))
            arrays.append(out)
        first, dtype = arrays[0][0]
        for name, stream in zip(("keys", "values"), arrays):
            for i, (a, d) in enumerate(stream):
                if d != dtype:
                    raise ValueError(f"{name}[{i}] is {d}, keys[0] is {dtype}")
                if geometry is None and a.shape != first.shape:
                    raise ValueError(f"{name}[{i}] has shape {a.shape}, keys[0] {first.shape}")
                if a.shape[1] != first.shape[1]:
                    raise ValueError(f"{name}[{i}] has {a.shape[1]} tokens, keys[0] "
                                     f"{first.shape[1]}")
        if geometry is None:
            geometry = Geometry.uniform(len(keys), first.shape[0], first.shape[2], **rope)
        ids = None if token_ids is None else np.asarray(token_ids).astype(np.uint32)
        if ids is not None and ids.shape != (first.shape[1],):
            raise ValueError(f"token_ids has shape {ids.shape}, expected ({first.shape[1]},)")
        return cls([a for a, _ in arrays[0]], [a for a, _ in arrays[1]], geometry, dtype, ids,
                   0, first_position)

    @classmethod
    def from_transformers(cls, past_key_values: Any, config: Any = None, sequence: int = 0,
                          token_ids: Optional[Sequence[int]] = None,
                          geometry: Optional[Geometry] = None) -> "Cache":
        """From transformers' past_key_values (a DynamicCache or the legacy tuple), one
        `sequence` of its batch. `config` (the model's) gives rope_theta; models whose RoPE
        is scaled need an explicit `geometry`."""
        if hasattr(past_key_values, "layers"):
            pairs = [(layer.keys, layer.values) for layer in past_key_values.layers]
        elif hasattr(past_key_values, "key_cache"):
            pairs = list(zip(past_key_values.key_cache, past_key_values.value_cache))
        else:
            pairs = [(p[0], p[1]) for p in past_key_values]
        rope = {}
        if geometry is None and config is not None:
            parameters = getattr(config, "rope_parameters", None) or {}
            scaling = getattr(config, "rope_scaling", None) or parameters
            kind = scaling.get("rope_type", scaling.get("type", "default"))
            if kind != "default":
                raise ValueError(f"the model's RoPE is scaled ({kind}): give a geometry")
            theta = parameters.get("rope_theta", getattr(config, "rope_theta", None))
            rope["rope_theta"] = 10000.0 if theta is None else theta
        return cls.from_arrays([k[sequence] for k, _ in pairs], [v[sequence] for _, v in pairs],
                               geometry, token_ids, **rope)

    @property
    def tokens(self) -> int:
        for x in self.keys:
            if x is not None:
                return int(x.shape[1])
        return 0

    def float32(self, stream: str) -> List[Optional[np.ndarray]]:
        """`stream` ("keys" or "values") as float32 arrays."""
        return [None if x is None else to_float32(x, self.dtype) for x in getattr(self, stream)]

    def to_torch(self, device: Any = "cpu") -> Any:
        """[(k, v)] of torch tensors [1, kv_heads, tokens, head_dim], a layer each: the
        legacy form of transformers' past_key_values."""
        import torch

        def tensor(x: np.ndarray) -> Any:
            if self.dtype == "bf16":
                t = torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
            else:
                t = torch.from_numpy(x)
            return t[None].to(device)

        return [(tensor(k), tensor(v)) for k, v in zip(self.keys, self.values)]
