"""A plain forward pass of llama, qwen2, qwen3 and gemma3 models, with K and V in reach.

Written to be read, and to run on torch 1.13 without a GPU as on torch 2 with one. All
sequences of a batch have the same length. Attention is exact and computed a block of
queries at a time; scores and softmax are float32 whatever the weights are.

K (after RoPE) and V are rounded to `kv_dtype` before attention reads them, as an engine
that keeps its cache in bf16 does: a cache that goes out and comes back unchanged changes
no logit. The rounding passes gradients straight through.
"""

import dataclasses
import typing

import torch
import torch.nn.functional as F

from tools.models import fetch, gguf_reader

# hook(layer, stream, x, positions) -> a replacement for x, or None to leave it.
#   stream "q_pre", "k_pre": before RoPE (after the QK norm where there is one), unrounded
#          "q", "k": after RoPE; "k" and "v" rounded to kv_dtype, as the cache holds them
#   x [batch, heads, tokens, head_dim]; positions [tokens] int64, absolute
#          "kv": the pair (k, v) as the hooks above left it; a replacement is a pair too
# What the hook returns is used as it is: not rounded again, gradients flow through it.
KvHook = typing.Callable[[int, str, torch.Tensor, torch.Tensor], typing.Optional[torch.Tensor]]

# A cache in memory: per layer (k, v), each [batch, kv_heads, tokens, head_dim], K after
# RoPE. A sliding layer may hold fewer tokens: its last one is the last of all layers.
Cache = typing.List[typing.Tuple[torch.Tensor, torch.Tensor]]


@dataclasses.dataclass
class Run:
    """hidden [batch, tokens, hidden]: after the final norm, what logits() takes.
    cache: K and V of past and new tokens, in kv_dtype; None unless asked for."""

    hidden: torch.Tensor
    cache: typing.Optional[Cache]


class Model:
    """Weights and the way to run them. Calls may overlap; nothing is kept between them."""

    def __init__(self, config, weights, dtype=torch.float32, device="cpu",
                 kv_dtype=torch.bfloat16):
        """weights: GGUF name -> tensor, matrices [out, in], any dtype.
        kv_dtype: what K and V are rounded to; None leaves them in `dtype`."""
        self.config = config
        self.dtype = dtype
        self.device = torch.device(device)
        self.kv_dtype = kv_dtype
        self._w = {k: v.to(self.device, dtype) for k, v in weights.items()}
        self._inv_freq = [torch.tensor(layer.rope.inv_freq(), dtype=torch.float32,
                                       device=self.device) for layer in config.layers]

    @classmethod
    def from_gguf(cls, path, dtype=torch.float32, device="cpu", kv_dtype=torch.bfloat16,
                  name=None):
        """Reads a GGUF file; its weights are bf16 values, held in `dtype`. name: what
        caches and reports call the model; if None a known model's title, or the file's."""
        name = name or fetch.title_of(path)
        file = gguf_reader.GgufFile(path)
        return cls(file.config(name), file.weights(), dtype, device, kv_dtype)

    def geometry(self):
        """The KV geometry: config.ModelConfig.geometry."""
        return self.config.geometry()

    def forward(self, tokens, past=None, kv_hook=None, first_position=None):
        """Logits [batch, tokens, vocab] float32 of `tokens` [batch, tokens] int64.

        past: K and V of the tokens before (batch may be 1: shared). first_position: of
        the first new token; the number of past tokens if None.
        """
        return self.logits(self.run(tokens, past, kv_hook, first_position).hidden)

    def logits(self, hidden):
        """[..., hidden] -> [..., vocab] float32. Take it in slices: it is large."""
        w = self._w["token_embd.weight" if self.config.tied else "output.weight"]
        return F.linear(hidden, w).float()

    def run(self, tokens, past=None, kv_hook=None, first_position=None, keep_cache=False):
        """The forward pass without the output matrix; arguments as forward()."""
        c = self.config
        tokens = tokens.to(self.device)
        if tokens.dim() != 2:
            raise ValueError(f"tokens must be [batch, tokens], found {tuple(tokens.shape)}")
        if first_position is None:
            first_position = max((k.shape[2] for k, _ in past), default=0) if past else 0
        positions = torch.arange(first_position, first_position + tokens.shape[1],
                                 device=self.device)
        hook = kv_hook or (lambda layer, stream, x, positions: None)
        x = F.embedding(tokens, self._w["token_embd.weight"]) * c.embed_scale
        cache = [] if keep_cache else None
        for i in range(len(c.layers)):
            x = self._layer(i, x, positions, past[i] if past else None, hook, cache)
        return Run(self._norm(x, "output_norm.weight"), cache)

    def generate(self, tokens, count, past=None, stop=()):
        """Greedy continuation of `tokens` [1, tokens]: up to `count` ids, ending before
        the first that is in `stop`."""
        out = []
        done = self.run(tokens, past, keep_cache=True)
        while len(out) < count:
            best = int(self.logits(done.hidden[0, -1]).argmax())
            if best in stop:
                break
            out.append(best)
            done = self.run(torch.tensor([[best]]), done.cache, keep_cache=True)
        return out

    def _layer(self, i, x, positions, past, hook, cache):
        c = self.config
        w = lambda name: f"blk.{i}.{name}.weight"
        a = self._attention(i, self._norm(x, w("attn_norm")), positions, past, hook, cache)
        if c.sandwich_norm:
            a = self._norm(a, w("post_attention_norm"))
        x = x + a
        h = self._norm(x, w("ffn_norm"))
        gate = F.linear(h, self._w[w("ffn_gate")])
        # torch 1.13 has the tanh form too (since 1.12)
        gate = F.gelu(gate, approximate="tanh") if c.gelu else F.silu(gate)
        h = F.linear(gate * F.linear(h, self._w[w("ffn_up")]), self._w[w("ffn_down")])
        if c.sandwich_norm:
            h = self._norm(h, w("post_ffw_norm"))
        return x + h

    def _attention(self, i, x, positions, past, hook, cache):
        c = self.config
        q = self._project(i, "attn_q", x, c.q_heads)
        k = self._project(i, "attn_k", x, c.kv_heads)
        v = self._project(i, "attn_v", x, c.kv_heads)
        if c.qk_norm:
            q = self._norm(q, f"blk.{i}.attn_q_norm.weight")
            k = self._norm(k, f"blk.{i}.attn_k_norm.weight")

        def pass_hook(stream, value):
            replaced = hook(i, stream, value, positions)
            return value if replaced is None else replaced.to(value.device, value.dtype)

        q = pass_hook("q_pre", q)
        k = pass_hook("k_pre", k)
        cos, sin = self._rotation(i, positions)
        q = pass_hook("q", rotate(q, cos, sin))
        k = pass_hook("k", self._round(rotate(k, cos, sin)))
        v = pass_hook("v", self._round(v))
        pair = hook(i, "kv", (k, v), positions)
        if pair is not None:
            k, v = pair[0].to(k.device, k.dtype), pair[1].to(v.device, v.dtype)
        if past is not None:
            batch = lambda p, new: p.to(new.device, new.dtype).expand(new.shape[0], -1, -1, -1)
            k = torch.cat([batch(past[0], k), k], dim=2)
            v = torch.cat([batch(past[1], v), v], dim=2)
        if cache is not None:
            cache.append((k.to(self.kv_dtype or k.dtype), v.to(self.kv_dtype or v.dtype)))
        out = attend(q, k, v, c.head_dim ** -0.5, c.layers[i].window)
        out = out.transpose(1, 2).reshape(x.shape[0], x.shape[1], c.q_heads * c.head_dim)
        return F.linear(out, self._w[f"blk.{i}.attn_output.weight"])

    def _project(self, i, name, x, heads):
        bias = self._w.get(f"blk.{i}.{name}.bias")
        y = F.linear(x, self._w[f"blk.{i}.{name}.weight"], bias)
        return y.view(x.shape[0], x.shape[1], heads, self.config.head_dim).transpose(1, 2)

    def _norm(self, x, name):
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.config.norm_eps)
        return (y * self._w[name].float()).to(x.dtype)

    def _rotation(self, i, positions):
        angle = positions.float()[:, None] * self._inv_freq[i][None, :]
        return angle.cos(), angle.sin()

    def _round(self, x):
        if self.kv_dtype is None or self.kv_dtype == x.dtype:
            return x
        rounded = x.detach().to(self.kv_dtype).to(x.dtype)
        return x + (rounded - x.detach()) if x.requires_grad else rounded


def rotate(x, cos, sin):
    """Rotate-half RoPE of x [..., tokens, head_dim] by cos, sin [tokens, dims / 2]; the
    elements past dims stay. Computed in float32."""
    half = cos.shape[-1]
    a, b = x[..., :half].float(), x[..., half:2 * half].float()
    turned = [a * cos - b * sin, b * cos + a * sin]
    return torch.cat([t.to(x.dtype) for t in turned] + [x[..., 2 * half:]], dim=-1)


def unrotate(x, cos, sin):
    """The inverse of rotate."""
    return rotate(x, cos, -sin)


def attend(q, k, v, scale, window=0, block=None):
    """Causal attention. q [batch, q_heads, T, D]; k, v [batch, kv_heads, S, D], S >= T;
    query t is key S - T + t and sees keys up to itself, the last `window` of them if
    window > 0. Returns [batch, q_heads, T, D]."""
    batch, q_heads, count, dim = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    group = q_heads // kv_heads
    block = block or (1024 if q.is_cuda else 256)
    out = []
    for begin in range(0, count, block):
        end = min(begin + block, count)
        first, last = keys - count + begin, keys - count + end
        low = max(0, first - window + 1) if window else 0
        # the query heads that share a KV head become rows of one product
        rows = (q[:, :, begin:end].reshape(batch, kv_heads, group * (end - begin), dim)
                .float() * scale)
        scores = rows @ k[:, :, low:last].float().transpose(2, 3)
        at = torch.arange(first, last, device=q.device)[:, None]
        key = torch.arange(low, last, device=q.device)[None, :]
        hidden = key > at
        if window:
            hidden = hidden | (at - key >= window)
        scores = scores.view(batch, kv_heads, group, end - begin, last - low)
        scores = scores.masked_fill(hidden, float("-inf"))
        p = torch.softmax(scores, dim=-1).view(batch, kv_heads, -1, last - low)
        y = p @ v[:, :, low:last].float()
        out.append(y.view(batch, q_heads, end - begin, dim).to(q.dtype))
    return torch.cat(out, dim=2)
