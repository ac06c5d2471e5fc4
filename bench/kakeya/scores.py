"""What decoded keys do to attention: errors of scores, and of the distribution over tokens.

Squared error of keys says little about a model's output; this is one step nearer. With the
clean queries q of a passage, its keys k and decoded keys k^, a score is <q, k> / sqrt(D) of the
rotated vectors, and attention P its softmax over the keys up to the query.
"""

import dataclasses
import statistics

import torch

SINKS = 4


@dataclasses.dataclass
class Errors:
    """Means over layers and query heads.

    mse: of keys. metric: (k - k^) S (k - k^)^T / D, S = E[q q^T] before RoPE of the passage's
    own queries: what whitening with these queries' moments would make least. score: of squared
    score errors over all pairs of a query and an earlier key. kl: of KL(P || P^), nats a query;
    kl_sinks, kl_rest: with the keys of the first SINKS tokens alone decoded, and with all others.
    """
    mse: float
    metric: float
    score: float
    kl: float
    kl_sinks: float
    kl_rest: float

    @staticmethod
    def mean(errors):
        return Errors(*(statistics.mean(getattr(e, f.name) for e in errors)
                        for f in dataclasses.fields(Errors)))


def queries(model, token_ids):
    """Per layer queries before and after RoPE, float32 [q_heads, T, D]."""
    found = {}

    def hook(layer, stream, x, positions):
        if stream in ("q_pre", "q"):
            found[layer, stream] = x[0].float()

    with torch.no_grad():
        model.run(torch.as_tensor(list(token_ids))[None], kv_hook=hook)
    return [(found[i, "q_pre"], found[i, "q"]) for i in range(len(model.config.layers))]


def head_errors(q_pre, q, k, decoded, unrotated):
    """Errors of one query head: q_pre, q, k, decoded [T, D]; unrotated: (k - decoded) before
    RoPE."""
    t, d = k.shape
    error = k - decoded
    moment = q_pre.T @ q_pre / t
    causal = torch.ones(t, t, dtype=torch.bool).tril()
    delta = (q @ error.T) * d ** -.5
    scores = (q @ k.T * d ** -.5).masked_fill(~causal, float("-inf"))
    clean = scores.log_softmax(-1)

    def kl(columns):
        moved = torch.zeros(t, t)
        moved[:, columns] = delta[:, columns]
        other = (scores - moved).log_softmax(-1)
        return float((clean.exp() * (clean - other).masked_fill(~causal, 0)).sum(-1).mean())

    return Errors(mse=float(error.pow(2).mean()),
                  metric=float(((unrotated @ moment) * unrotated).sum(-1).mean()) / d,
                  score=float(delta[causal].pow(2).mean()),
                  kl=kl(slice(0, t)), kl_sinks=kl(slice(0, SINKS)), kl_rest=kl(slice(SINKS, t)))


def by_layer(model, cache, decoded, found):
    """cache, decoded: per layer (k, v) [kv_heads, T, D], keys rotated; found: queries(). Per
    layer the Errors over its query heads."""
    from tools.calibrate import capture
    from tools.models import forward
    out = []
    for i, ((k, _), (other, _)) in enumerate(zip(cache, decoded)):
        q_pre, q = found[i]
        k, other = k.float(), other.float()
        tables = capture.rope_tables(model, i, torch.arange(k.shape[1]))
        turned = forward.unrotate(k - other, *tables)
        group = q.shape[0] // k.shape[0]
        out.append(Errors.mean([head_errors(q_pre[h], q[h], k[h // group], other[h // group],
                                            turned[h // group]) for h in range(q.shape[0])]))
    return out


def _layers(model, captured, codec):
    """(Errors of each layer, mean over passages; stored bytes' ratio)."""
    found, raw, stored = [], 0, 0
    for passage, cache, queries_found in captured:
        decoded = codec(model.config, cache, list(map(int, passage.ids)))
        raw, stored = raw + decoded.raw_bytes, stored + decoded.stored_bytes
        found.append(by_layer(model, cache, decoded.layers, queries_found))
    return [Errors.mean(layer) for layer in zip(*found)], raw / stored


def table(model, captured, made):
    """Lines. captured: (passage, cache, queries()) of each passage."""
    names = [f.name for f in dataclasses.fields(Errors)]
    yield "| setting | ratio | rank of K | " + " | ".join(names) + " |"
    yield "|---" * (3 + len(names)) + "|"
    for codec in made:
        layers, ratio = _layers(model, captured, codec)
        mean = Errors.mean(layers)
        ranks = [r for report in getattr(codec, "reports", []) for p in report["planes"]
                 if p["stream"] == "k" and p["coded"] for r in p["ranks"]]
        cells = [codec.name, f"{ratio:.2f}", f"{statistics.mean(ranks):.1f}" if ranks else ""]
        yield "| " + " | ".join(cells + [f"{getattr(mean, n):.4f}" for n in names]) + " |"


def worst_layers(model, captured, codec):
    """[(layer, nats a query)] by what the layer's decoded keys do to attention, worst first."""
    layers, _ = _layers(model, captured, codec)
    return sorted(((i, e.kl) for i, e in enumerate(layers)), key=lambda x: -x[1])
