"""KV caches as safetensors files, the form every tool here reads and writes.

Tensors: k.LL and v.LL (LL: two digits, from 00), [kv_heads, tokens, head_dim] bf16, K
after RoPE; token_ids [tokens] int32. Metadata: ModelConfig.metadata.
"""

import dataclasses

import safetensors
import safetensors.torch
import torch


@dataclasses.dataclass
class StoredCache:
    """layers: per layer (k, v), each [kv_heads, tokens, head_dim] bf16.
    token_ids [tokens] int32. metadata: str -> str."""

    layers: list
    token_ids: torch.Tensor
    metadata: dict

    def batched(self):
        """The form forward takes: a batch of one."""
        return [(k[None], v[None]) for k, v in self.layers]


def write(path, config, cache, token_ids, first_position=0, extra=None):
    """Writes one sequence's cache: per layer (k, v) of [1, kv_heads, tokens, head_dim] or
    without the batch axis. extra: more metadata strings (text, command, commit)."""
    tensors = {}
    for i, (k, v) in enumerate(cache):
        for stream, x in (("k", k), ("v", v)):
            x = x[0] if x.dim() == 4 else x
            expected = (config.kv_heads, len(token_ids), config.head_dim)
            if tuple(x.shape) != expected:
                raise ValueError(f"{stream}.{i:02d} is {tuple(x.shape)}, expected {expected}")
            tensors[f"{stream}.{i:02d}"] = x.detach().to("cpu", torch.bfloat16).contiguous()
    tensors["token_ids"] = torch.as_tensor(list(token_ids), dtype=torch.int32)
    metadata = config.metadata(len(token_ids), first_position)
    safetensors.torch.save_file(tensors, str(path), {**metadata, **(extra or {})})


def read(path):
    """Reads what write() wrote. ValueError names the first tensor that is missing or of
    the wrong shape or dtype."""
    with safetensors.safe_open(str(path), framework="pt") as f:
        metadata = f.metadata() or {}
        names = set(f.keys())
        try:
            count, heads, tokens, dim = (int(metadata[k]) for k in
                                         ("layers", "kv_heads", "tokens", "head_dim"))
        except KeyError as e:
            raise ValueError(f"{path}: the metadata has no {e.args[0]!r}") from e

        def tensor(name, shape, dtype):
            if name not in names:
                raise ValueError(f"{path}: no tensor {name}")
            x = f.get_tensor(name)
            if tuple(x.shape) != shape or x.dtype != dtype:
                raise ValueError(f"{path}: {name} is {x.dtype} {tuple(x.shape)}, "
                                 f"expected {dtype} {shape}")
            return x

        shape = (heads, tokens, dim)
        layers = [tuple(tensor(f"{s}.{i:02d}", shape, torch.bfloat16) for s in "kv")
                  for i in range(count)]
        return StoredCache(layers, tensor("token_ids", (tokens,), torch.int32), metadata)
