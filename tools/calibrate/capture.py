"""Model -> keys, values and gradients of one passage.

x [tokens, elements] is each token's KV as the codec sees it: K as an engine caches it
(rotated, rounded), turned back; V rounded. g [draws, n, elements] is the gradient of
sum log p(y) with respect to x of the first n tokens, with y drawn from the model's own
distribution: E[g g^T] is the Fisher information of the output in x.

Two outputs can be asked about. `capture`: that of every position, with the KV of all tokens
(n = tokens) taken as given: a key's error reaches the output through every query that reads
it and through all later layers of those queries' tokens, but other tokens' cached keys and
values do not change with it. `capture_prefix`: that of the tokens after the first n, which
run on the given KV of those n and compute their own, errors and all, as a model does that
continues from a stored cache. Its g is scaled so that the mean over the n tokens of
1/2 dx^T E[g g^T] dx is the KL divergence per token of output, as it is by nature in the first.
"""

import dataclasses

import numpy as np
import torch
import torch.utils.checkpoint

from tools.calibrate import layout as layout_lib
from tools.models import forward


VERSION = 2  # of what a capture holds: older work folders are not gone on with


@dataclasses.dataclass
class Captured:
    x: torch.Tensor  # float32 [tokens, elements]
    g: torch.Tensor  # bfloat16 [draws, n <= tokens, elements]
    nll: float       # mean nats a token: a model that was read wrongly shows here


class RecomputingModel(forward.Model):
    """Forgets what is inside a layer and computes it again in the backward pass: memory
    for one layer's attention scores instead of all."""

    recompute = False

    def _layer(self, i, x, positions, past, hook, cache):
        if not self.recompute:
            return super()._layer(i, x, positions, past, hook, cache)
        return torch.utils.checkpoint.checkpoint(
            super()._layer, i, x, positions, past, hook, cache, use_reentrant=False)


def model_layout(config):
    return layout_lib.Layout([(config.kv_heads, config.head_dim)] * len(config.layers))


def flatten(layout, planes):
    """{(layer, "K" | "V"): [1, heads, tokens, dim]} -> [tokens, elements]."""
    return torch.cat([
        planes[p.layer, p.stream][0].transpose(0, 1).reshape(-1, p.size)
        for p in layout.planes], dim=1)


def unflatten(layout, x):
    """[tokens, elements] -> {(layer, stream): [1, heads, tokens, dim]}."""
    return {(p.layer, p.stream):
            x[:, p.begin:p.begin + p.size].view(-1, p.heads, p.head_dim).transpose(0, 1)[None]
            for p in layout.planes}


def rope_tables(model, layer, positions):
    angle = positions.float()[:, None] * model._inv_freq[layer][None, :]
    return angle.cos(), angle.sin()


def cache_to_x(model, layout, cache, first_position=0):
    """A cache as forward.run returns it (K rotated) -> x [tokens, elements] float32."""
    planes = {}
    for i, (k, v) in enumerate(cache):
        positions = torch.arange(first_position, first_position + k.shape[2], device=k.device)
        planes[i, "K"] = forward.unrotate(k.float(), *rope_tables(model, i, positions))
        planes[i, "V"] = v.float()
    return flatten(layout, planes)


def x_to_cache(model, layout, x, dtype=torch.bfloat16, first_position=0):
    """The inverse: rotates K and rounds to the cache's dtype."""
    planes = unflatten(layout, x)
    positions = torch.arange(first_position, first_position + x.shape[0], device=x.device)
    out = []
    for i in range(layout.layers):
        k = forward.rotate(planes[i, "K"], *rope_tables(model, i, positions))
        out.append((k.to(dtype), planes[i, "V"].to(dtype)))
    return out


def capture(model, layout, ids, draws, generator):
    """Runs one passage. generator: torch.Generator on the model's device."""
    tokens = torch.as_tensor(ids, device=model.device)[None]
    leaves, rotated = {}, {}

    def hook(layer, stream, x, positions):
        if stream == "k":
            rotated[layer] = x.detach()
        if stream not in ("k_pre", "v"):
            return None
        key = (layer, "K" if stream == "k_pre" else "V")
        if key not in leaves:
            leaves[key] = x.detach().requires_grad_(draws > 0)
        return leaves[key]

    with torch.set_grad_enabled(draws > 0):
        hidden = model.run(tokens, kv_hook=hook).hidden[0]
        log_p = torch.log_softmax(model.logits(hidden), dim=-1)
    nll = -log_p[:-1].detach().gather(1, tokens[0, 1:, None]).mean().item()
    if not np.isfinite(nll):
        raise FloatingPointError("the model's output is not finite")
    planes = {}
    for (layer, stream), leaf in leaves.items():
        if stream == "V":
            planes[layer, "V"] = leaf.detach().float()
        else:
            positions = torch.arange(tokens.shape[1], device=model.device)
            planes[layer, "K"] = forward.unrotate(rotated[layer].float(),
                                                  *rope_tables(model, layer, positions))
    x = flatten(layout, planes)
    gradients = []
    keys = list(leaves)
    for i in range(draws):
        with torch.no_grad():
            y = torch.multinomial(log_p.detach().exp(), 1, generator=generator)
        loss = log_p.gather(1, y).sum()
        found = torch.autograd.grad(loss, [leaves[k] for k in keys], retain_graph=i + 1 < draws)
        gradients.append(flatten(layout, dict(zip(keys, found))).to(torch.bfloat16))
    g = (torch.stack(gradients) if draws else
         torch.zeros(0, x.shape[0], x.shape[1], dtype=torch.bfloat16, device=x.device))
    return Captured(x, g, nll)


def capture_prefix(model, layout, ids, draws, generator, prefix):
    """As capture(), for what the tokens from `prefix` on make of the cache of those before."""
    tokens = torch.as_tensor(ids, device=model.device)[None]
    with torch.no_grad():
        cache = model.run(tokens[:, :prefix], keep_cache=True).cache
    x = cache_to_x(model, layout, cache)
    leaf = x.clone().requires_grad_(draws > 0)
    # not rounded again: gradients flow through the rotation alone
    past = x_to_cache(model, layout, leaf, torch.float32)
    with torch.set_grad_enabled(draws > 0):
        done = model.run(tokens[:, prefix:], past, keep_cache=True)
        log_p = torch.log_softmax(model.logits(done.hidden[0]), dim=-1)
    nll = -log_p[:-1].detach().gather(1, tokens[0, prefix + 1:, None]).mean().item()
    if not np.isfinite(nll):
        raise FloatingPointError("the model's output is not finite")
    rest = [(k[:, :, prefix:].detach(), v[:, :, prefix:].detach()) for k, v in done.cache]
    x = torch.cat([x, cache_to_x(model, layout, rest, prefix)])
    gradients, scale = [], (prefix / (tokens.shape[1] - prefix)) ** 0.5
    for i in range(draws):
        with torch.no_grad():
            y = torch.multinomial(log_p.detach().exp(), 1, generator=generator)
        found, = torch.autograd.grad(log_p.gather(1, y).sum(), leaf, retain_graph=i + 1 < draws)
        gradients.append((found * scale).to(torch.bfloat16))
    g = (torch.stack(gradients) if draws else
         torch.zeros(0, prefix, x.shape[1], dtype=torch.bfloat16, device=x.device))
    return Captured(x, g, nll)
