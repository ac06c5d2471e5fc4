"""Negative log-likelihoods of a text, without holding all logits at once."""

import torch
import torch.nn.functional as F

_ROWS = 512  # positions whose logits are held at once


def token_nll(model, hidden, targets):
    """[tokens] float64 nats: -log p(targets[i] | ...) from hidden[i].
    hidden [tokens, hidden]; targets [tokens] int64."""
    parts = [F.cross_entropy(model.logits(hidden[i:i + _ROWS]).double(),
                             targets[i:i + _ROWS].to(hidden.device), reduction="none").cpu()
             for i in range(0, len(targets), _ROWS)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def perplexity(model, ids):
    """Perplexity of a list of ids, each predicted from all before it; needs two or more."""
    if len(ids) < 2:
        raise ValueError(f"perplexity needs 2 tokens or more, found {len(ids)}")
    tokens = torch.tensor(ids)
    with torch.no_grad():
        hidden = model.run(tokens[None, :-1]).hidden[0]
        return float(token_nll(model, hidden, tokens[1:]).mean().exp())
