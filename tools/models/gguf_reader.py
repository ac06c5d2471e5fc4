"""Reads a GGUF file: its configuration, its vocabulary, its weights as bf16.

The bf16 weights made here are the reference of every measurement: whatever the file's
own quantisation lost is lost in the clean run and in the compressed run alike. Vectors
(norms, biases), which files hold in fp32, stay fp32: Gemma's norms are stored plus one.
Dequantising is done once, by the `gguf` package, and kept as <file>.weights.safetensors.
"""

import dataclasses
import os
import pathlib

import gguf
import safetensors.torch
import torch

from tools.models.config import Layer, ModelConfig, Rope

# Gemma 3: five local layers, then a global one; local layers turn with theta 1e4
# whatever the header says (it holds the global theta alone).
_GEMMA3_PERIOD = 6
_GEMMA3_LOCAL_THETA = 10000.0


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The tokenizer as a GGUF holds it.

    model: "gpt2" (byte-level BPE) or "llama" (SentencePiece). pre: the name of the
    pre-tokeniser. types: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    """

    model: str
    pre: str
    tokens: list
    scores: list
    types: list
    merges: list
    bos: int
    eos: int
    add_bos: bool
    add_space_prefix: bool
    chat_template: str


class GgufFile:
    """An open GGUF file. Not thread-safe."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self._reader = gguf.GGUFReader(str(self.path))
        self._fields = self._reader.fields
        self.arch = self._get("general.architecture")

    def config(self, name=None):
        """The ModelConfig. name: what caches and reports call the model; the file's own
        general.name if None. ValueError where the file says what forward can't do."""
        heads = self._need("attention.head_count")
        hidden = self._need("embedding_length")
        head_dim = self._get(f"{self.arch}.attention.key_length", hidden // heads)
        shapes = {t.name: [int(n) for n in t.shape] for t in self._reader.tensors}
        gemma = self.arch == "gemma3"
        return ModelConfig(
            arch=self.arch,
            name=name or self._get("general.name", self.path.stem),
            vocab=shapes["token_embd.weight"][1],
            hidden=hidden,
            ffn=self._need("feed_forward_length"),
            q_heads=heads,
            kv_heads=self._get(f"{self.arch}.attention.head_count_kv", heads),
            head_dim=head_dim,
            norm_eps=self._need("attention.layer_norm_rms_epsilon"),
            context=self._need("context_length"),
            layers=self._layers(head_dim),
            tied="output.weight" not in shapes,
            qkv_bias="blk.0.attn_q.bias" in shapes,
            qk_norm="blk.0.attn_q_norm.weight" in shapes,
            sandwich_norm=gemma,
            gelu=gemma,
            embed_scale=hidden ** 0.5 if gemma else 1.0,
        )

    def vocabulary(self):
        get = lambda key, default=None: self._get("tokenizer.ggml." + key, default)
        return Vocabulary(
            model=get("model"), pre=get("pre", ""), tokens=get("tokens"),
            scores=get("scores", []), types=get("token_type", []), merges=get("merges", []),
            bos=get("bos_token_id", -1), eos=get("eos_token_id", -1),
            add_bos=bool(get("add_bos_token", get("model") == "llama")),
            add_space_prefix=bool(get("add_space_prefix", get("model") == "llama")),
            chat_template=self._get("tokenizer.chat_template", ""),
        )

    def weights(self, cache=True):
        """name -> tensor on the CPU: matrices bf16 [out, in], vectors fp32; GGUF names.

        q and k of arch llama are un-permuted, so that RoPE is rotate-half for all. With
        cache, the result is kept beside the file and read from there the next time.
        """
        kept = self.path.with_name(self.path.name + ".weights.safetensors")
        if cache and kept.exists() and kept.stat().st_mtime >= self.path.stat().st_mtime:
            return safetensors.torch.load_file(str(kept))
        config = self.config()
        out = {}
        for tensor in self._reader.tensors:
            if tensor.name.startswith("rope_freqs"):
                continue
            x = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            x = torch.from_numpy(x.copy()).reshape([int(n) for n in reversed(tensor.shape)])
            if self.arch == "llama" and tensor.name.endswith(("attn_q.weight", "attn_k.weight")):
                heads = config.q_heads if "attn_q" in tensor.name else config.kv_heads
                x = unpermute(x, heads)
            out[tensor.name] = (x.float() if x.dim() == 1 else x.to(torch.bfloat16)).contiguous()
        if cache:
            partial = kept.with_name(f"{kept.name}.{os.getpid()}")
            safetensors.torch.save_file(out, str(partial))
            os.replace(partial, kept)
        return out

    def _layers(self, head_dim):
        a = self.arch
        count = self._need("block_count")
        theta = float(self._get(f"{a}.rope.freq_base", 10000.0))
        dims = self._get(f"{a}.rope.dimension_count", head_dim)
        scaling = self._get(f"{a}.rope.scaling.type", "none")
        if scaling not in ("none", "linear"):
            raise ValueError(f"{self.path}: RoPE scaling {scaling!r} is not supported "
                             "(none, linear and llama3 factors are)")
        linear = float(self._get(f"{a}.rope.scaling.factor", 1.0)) if scaling == "linear" else 1.0
        factors = ()
        for tensor in self._reader.tensors:
            if tensor.name == "rope_freqs.weight":
                factors = tuple(float(f) for f in tensor.data.reshape(-1))
        everywhere = Layer(Rope(theta, dims, linear, factors))
        if a != "gemma3":
            if self._get(f"{a}.attention.sliding_window", 0):
                raise ValueError(f"{self.path}: a sliding window on arch {a} is not supported")
            return (everywhere,) * count
        local = Layer(Rope(_GEMMA3_LOCAL_THETA, dims), self._need("attention.sliding_window"))
        return tuple(everywhere if (i + 1) % _GEMMA3_PERIOD == 0 else local
                     for i in range(count))

    def _get(self, key, default=None):
        field = self._fields.get(key)
        return default if field is None else field.contents()

    def _need(self, key):
        value = self._get(f"{self.arch}.{key}")
        if value is None:
            raise ValueError(f"{self.path}: the header has no {self.arch}.{key}")
        return value


def unpermute(w, heads):
    """Undoes the row permutation that the GGUF converter applies to q and k of arch llama
    (it makes RoPE pairs adjacent); w [heads * head_dim, in]."""
    rows, cols = w.shape
    return (w.view(heads, rows // heads // 2, 2, cols).transpose(1, 2)
            .reshape(rows, cols))


def permute(w, heads):
    """What the GGUF converter does to q and k of arch llama: the inverse of unpermute."""
    rows, cols = w.shape
    return (w.view(heads, 2, rows // heads // 2, cols).transpose(1, 2)
            .reshape(rows, cols))
