"""Weights of tokens for attention-weighted PCA: how much the prefix itself attends to them."""

import torch


class Weights:
    """(layers, token_ids) -> per layer [tokens]: the mean attention that each key gets from the
    queries after it, over query heads and queries; at least a hundredth of the mean, so that no
    row is lost. Known at prefill, where engines have the queries; here the model is run again.
    """

    def __init__(self, model):
        self._model = model

    def __call__(self, layers, token_ids):
        ids, tokens = list(token_ids), len(token_ids)
        c, sums, queries = self._model.config, {}, {}

        def hook(layer, stream, x, positions):
            if stream == "q":
                queries[layer] = x[0].float()
            elif stream == "k":
                q = queries.pop(layer).reshape(c.kv_heads, -1, tokens, c.head_dim)
                scores = torch.einsum("hgtd,hsd->hgts", q, x[0].float()) * c.head_dim ** -0.5
                at = torch.arange(tokens)
                scores = scores.masked_fill(at[None, :] > at[:, None], float("-inf"))
                got = scores.softmax(-1).mean((0, 1)).sum(0)
                # fewer queries see late keys: per query that could
                sums[layer] = got / torch.arange(tokens, 0, -1)

        with torch.no_grad():
            self._model.run(torch.as_tensor(ids)[None], kv_hook=hook)
        out = []
        for layer in range(len(layers)):
            w = sums[layer]
            out.append(torch.maximum(w, w.mean() / 100).numpy())
        return out
