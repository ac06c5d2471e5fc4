"""Small models with random weights, one of each family, for tests."""

import torch

from tools.models import forward
from tools.models.config import Layer, ModelConfig, Rope


def config(arch, layers=3):
    """Four query heads over two KV heads of 16, vocabulary 97; gemma3 has six layers, with
    a window of 8 on the first five."""
    gemma = arch == "gemma3"
    rope = Rope(10000.0, 16) if arch == "llama" else Rope(1e6, 16)
    plan = ((Layer(Rope(1e4, 16), 8),) * 5 + (Layer(rope),)) if gemma else (Layer(rope),) * layers
    return ModelConfig(
        arch=arch, name=f"random-{arch}", vocab=97, hidden=48, ffn=80, q_heads=4, kv_heads=2,
        head_dim=16, norm_eps=2.0 ** -20, context=256, layers=plan, tied=arch != "llama",
        qkv_bias=arch == "qwen2", qk_norm=arch in ("qwen3", "gemma3"), sandwich_norm=gemma,
        gelu=gemma, embed_scale=48 ** 0.5 if gemma else 1.0)


def weights(c, seed):
    """GGUF name -> fp32 tensor; norms near one, biases of some size."""
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=g)
    out = {"token_embd.weight": normal(c.vocab, c.hidden) * 0.5,
           "output_norm.weight": 1 + 0.2 * normal(c.hidden)}
    if not c.tied:
        out["output.weight"] = normal(c.vocab, c.hidden) * 0.5
    q, kv = c.q_heads * c.head_dim, c.kv_heads * c.head_dim
    shapes = {"attn_q": (q, c.hidden), "attn_k": (kv, c.hidden), "attn_v": (kv, c.hidden),
              "attn_output": (c.hidden, q), "ffn_gate": (c.ffn, c.hidden),
              "ffn_up": (c.ffn, c.hidden), "ffn_down": (c.hidden, c.ffn)}
    norms = {"attn_norm": c.hidden, "ffn_norm": c.hidden}
    if c.qk_norm:
        norms.update(attn_q_norm=c.head_dim, attn_k_norm=c.head_dim)
    if c.sandwich_norm:
        norms.update(post_attention_norm=c.hidden, post_ffw_norm=c.hidden)
    for i in range(len(c.layers)):
        for name, shape in shapes.items():
            out[f"blk.{i}.{name}.weight"] = normal(*shape) * shape[1] ** -0.5
        for name, size in norms.items():
            out[f"blk.{i}.{name}.weight"] = 1 + 0.2 * normal(size)
        if c.qkv_bias:
            for name in ("attn_q", "attn_k", "attn_v"):
                out[f"blk.{i}.{name}.bias"] = normal(shapes[name][0])
    return out


def model(arch, seed=1, kv_dtype=torch.bfloat16):
    c = config(arch)
    return forward.Model(c, weights(c, seed), kv_dtype=kv_dtype)


def tokens(batch, count, seed=2):
    """[batch, count] int64 ids of config()'s vocabulary."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 97, (batch, count), generator=g)
