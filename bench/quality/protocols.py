"""The protocols: what of a passage is replaced by decoded K and V, and what is scored.

prefix      K and V of the first 75 % of the tokens; the continuation is scored.
whole       K and V of every position, from the clean run's cache; every position.
in-forward  each layer's K and V as it is computed, errors compounding; every position.

Clean and changed runs go through the same operations in the same shapes, so that a cache
which comes back unchanged scores exactly zero.
"""

import torch

from bench.quality import fidelity, scores

PROTOCOLS = ("prefix", "whole", "in-forward")
_ROWS = 256  # positions whose logits are held at once
_KEEP_BYTES = {False: 1 << 29, True: 3 << 30}  # of clean log p, by "on a GPU"


def pick(clean, decoded, streams="kv", layers=None):
    """The clean cache with the chosen streams of the chosen layers taken from the decoded
    one; both per layer (k, v). layers: a set of indices, None for all."""
    out = []
    for i, (a, b) in enumerate(zip(clean, decoded)):
        chosen = layers is None or i in layers
        out.append((b[0] if chosen and "k" in streams else a[0],
                    b[1] if chosen and "v" in streams else a[1]))
    return out


def pick_heads(clean, decoded, members):
    """As pick, with the heads of `members`, a set of (layer, "k" or "v", head)."""
    out = []
    for i, (a, b) in enumerate(zip(clean, decoded)):
        pair = []
        for stream, x, y in zip("kv", a, b):
            heads = [h for layer, s, h in members if layer == i and s == stream]
            if heads:
                x = x.clone()
                x[heads] = y[heads].to(x.device)
            pair.append(x)
        out.append(tuple(pair))
    return out


class Passage:
    """The clean run of one passage under one protocol, and scores against it.

    ids: list of ints. cache: what is to be stored, per layer (k, v) [kv_heads, tokens,
    head_dim] bf16 on the CPU; token_ids: of these tokens.
    """

    def __init__(self, model, protocol, ids, share=0.75):
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol {protocol!r} is not one of {PROTOCOLS}")
        self._model, self.protocol = model, protocol
        ids = torch.tensor(ids)
        self._log_p = {}
        self._cut = int(len(ids) * share) if protocol == "prefix" else len(ids) - 1
        if self._cut < 1 or len(ids) < self._cut + 1:
            raise ValueError(f"{len(ids)} tokens are too few for protocol {protocol}")
        with torch.no_grad():
            stored = model.run(ids[None, :self._cut], keep_cache=True)
            self.cache = [(k[0].cpu(), v[0].cpu()) for k, v in stored.cache]
            self.token_ids = ids[:self._cut].tolist()
            if protocol == "prefix":
                self._inputs, self._targets = ids[None, self._cut:-1], ids[self._cut + 1:]
                self._clean = self._continue(self.cache)
            else:
                self._inputs, self._targets = ids[None, :-1], ids[1:]
                self._clean = stored.hidden[0]
        if len(self._targets) == 0:
            raise ValueError(f"{len(ids)} tokens leave none to score")

    def heads(self, layers):
        """fidelity rows of `layers` (as self.cache)."""
        with torch.no_grad():
            return tuple(h.row() for h in fidelity.measure(
                self._model.config, self.cache, layers, self._model.device))

    def score(self, layers, kind, passage, raw, stored):
        """PassageScore with `layers` (as self.cache) in the place of the clean cache."""
        with torch.no_grad():
            if self.protocol == "prefix":
                hidden = self._continue(layers)
            elif self.protocol == "whole":
                hidden = self._replaced(layers)
            else:
                raise ValueError("in-forward replaces as it goes: use score_in_forward")
            return self._compare(hidden, kind, passage, raw, stored)

    def score_in_forward(self, roundtrip, kind, passage):
        """PassageScore with each layer's K and V sent through `roundtrip` as they appear."""
        if not roundtrip.layer_local:
            raise ValueError(f"{roundtrip.name} does not code layers apart: in-forward is n/a")
        total = [0, 0]

        def hook(layer, stream, x, positions):
            if stream != "kv":
                return None
            k, v = (y[0].to(torch.bfloat16) for y in x)
            done = roundtrip.one_layer(self._model.config, layer, k, v, self.token_ids)
            total[0] += done.raw_bytes
            total[1] += done.stored_bytes
            return tuple(y[None] for y in done.layers[0])

        with torch.no_grad():
            hidden = self._model.run(self._inputs, kv_hook=hook).hidden[0]
            return self._compare(hidden, kind, passage, *total)

    def _continue(self, layers):
        past = [(k[None].to(self._model.device), v[None].to(self._model.device))
                for k, v in layers]
        return self._model.run(self._inputs, past).hidden[0]

    def _replaced(self, layers):
        def hook(layer, stream, x, positions):
            return layers[layer]["kv".index(stream)][None] if stream in ("k", "v") else None
        return self._model.run(self._inputs, kv_hook=hook).hidden[0]

    def _clean_log_p(self, begin):
        """log p of the clean run at positions begin .. begin + _ROWS; kept while it is
        small, since every codec is compared with it."""
        if begin in self._log_p:
            return self._log_p[begin]
        p = torch.log_softmax(self._model.logits(self._clean[begin:begin + _ROWS]), -1)
        if (len(self._log_p) + 1) * p.numel() * 4 <= _KEEP_BYTES[self._clean.is_cuda]:
            self._log_p[begin] = p
        return p

    def _compare(self, hidden, kind, passage, raw, stored):
        kl, nll, dnll, same = [], 0.0, 0.0, 0
        targets = self._targets.to(hidden.device)
        for i in range(0, len(targets), _ROWS):
            rows = slice(i, i + _ROWS)
            a = self._clean_log_p(i)
            b = torch.log_softmax(self._model.logits(hidden[rows]), -1)
            kl += (a.exp() * (a - b)).sum(-1).clamp(min=0).tolist()
            want = targets[rows, None]
            la, lb = a.gather(1, want).double(), b.gather(1, want).double()
            nll -= float(la.sum())
            dnll += float((la - lb).sum())
            same += int((a.argmax(-1) == b.argmax(-1)).sum())
        n = len(kl)
        return scores.PassageScore(kind, passage, dnll / n, nll / n, tuple(kl), same / n,
                                   raw, stored)
