"""The prefix protocol: what a decoded cache costs the model.

K and V of the first three quarters of a passage are replaced by what the codec returns; the
rest of the passage runs on them, and its output is compared with the clean run's. Both
caches are bf16, keys after RoPE, as an engine holds them: an unchanged cache scores 0.
"""

import contextlib
import dataclasses

import torch

from tools.calibrate import capture


@contextlib.contextmanager
def tf32():
    """Matrix products of the model in tf32 on GPUs that have it; statistics never use it."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@dataclasses.dataclass
class Clean:
    x: torch.Tensor        # [prefix, elements] float32: what the codec is given
    cache: list
    rest: torch.Tensor     # [1, n] ids
    log_p: torch.Tensor    # [n, vocab]


@dataclasses.dataclass
class Score:
    kl: torch.Tensor       # nats, a scored token each
    nll: torch.Tensor      # of the token that follows, changed minus clean
    same_top: torch.Tensor  # bool

    def summary(self):
        return {"kld": float(self.kl.mean()), "dnll": float(self.nll.mean()),
                "top1": float(self.same_top.float().mean()),
                "kl99": float(torch.quantile(self.kl.float(), 0.99))}


@torch.no_grad()
def clean_run(model, layout, ids, prefix=None):
    ids = torch.as_tensor(ids, device=model.device)[None]
    prefix = prefix or ids.shape[1] * 3 // 4
    with tf32():
        cache = model.run(ids[:, :prefix], keep_cache=True).cache
        rest = ids[:, prefix:]
        log_p = torch.log_softmax(model.logits(model.run(rest, cache).hidden[0]), -1)
    return Clean(capture.cache_to_x(model, layout, cache), cache, rest, log_p)


@torch.no_grad()
def score(model, layout, clean, x):
    """Scores the continuation on the cache that x [prefix, elements] stands for."""
    cache = capture.x_to_cache(model, layout, x, model.kv_dtype or torch.float32)
    return score_cache(model, clean, cache)


@torch.no_grad()
def score_cache(model, clean, cache):
    with tf32():
        log_q = torch.log_softmax(model.logits(model.run(clean.rest, cache).hidden[0]), -1)
    kl = (clean.log_p.exp() * (clean.log_p - log_q)).sum(-1).clamp(min=0)
    following = clean.rest[0, 1:, None]
    nll = clean.log_p[:-1].gather(1, following) - log_q[:-1].gather(1, following)
    return Score(kl, nll[:, 0], clean.log_p.argmax(-1) == log_q.argmax(-1))


def rounding_error(model, layout, x):
    """What rounding x to the cache's dtype changes, in the coordinates of x."""
    cache = capture.x_to_cache(model, layout, x, model.kv_dtype or torch.float32)
    return capture.cache_to_x(model, layout, cache) - x
