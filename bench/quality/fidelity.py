"""What came back, head by head, against what was sent: finds faults that a loss is too
blunt for.

One head's keys turned by a position cost a model of ninety heads a hundred-thousandth of a
nat: no bound on a loss sees it. But an honest codec errs everywhere alike, and in three ways
not at all: it scales no head otherwise than the others, turns no keys, and moves no mean
further than its own noise.

For one head, with c what was sent and d what came back, K un-rotated, tokens after the
sinks (of a sliding layer those in the window), both less their means over the tokens:

  gain_cd  <c, d> / <d, d>: 1 for decoders that give the mean of what a code stands for
           (Lloyd centroids, dropped rows), however few the bits
  gain_dc  <c, d> / <c, c>: 1 for codes whose error does not depend on the value (rounding
           to the middle)
  offset   rms over coordinates of mean(d) - mean(c), as a share of c's rms
  noise    rms of the rest of d - c, as a share of c's rms
  turn     K: by how many positions the keys are turned, from the phases of the pairs that
           RoPE turns, each weighed by its energy; V: 0
"""

import dataclasses
import statistics

import torch

from tools.models import forward

_SINKS = 4
# What is allowed: the greatest of each. Five percent must not be, at the noise of 4 bits.
_GAIN = (0.035, 0.2)   # beside the other heads' median; times noise^2; and
_SPREAD = 6            # times the heads' median deviation from that median
_TURN = (0.2, 0.5)     # positions; times noise
_OFFSET = (0.1, 1.5)   # of c's rms; times noise
_UNJUDGED = 1.0        # heads with more noise: of them only the loss can tell


@dataclasses.dataclass(frozen=True)
class Head:
    """One head of one stream ("k", "v") of one layer; see the module."""

    layer: int
    stream: str
    head: int
    gain_cd: float
    gain_dc: float
    offset: float
    noise: float
    turn: float

    def row(self):
        """As a short list, for a results file; from_row is its inverse."""
        return [self.layer, self.stream, self.head, *(
            float(f"{x:.4g}") for x in (self.gain_cd, self.gain_dc, self.offset, self.noise,
                                        self.turn))]

    @classmethod
    def from_row(cls, row):
        return cls(*row)


def measure(config, clean, decoded, device="cpu"):
    """List of Head. clean, decoded: per layer (k, v) of [kv_heads, tokens, head_dim], the
    first token at position 0."""
    out = []
    for i, (sent, back) in enumerate(zip(clean, decoded)):
        tokens = sent[0].shape[1]
        window = config.layers[i].window
        first = min(max(_SINKS, tokens - window if window else 0), max(0, tokens - 2))
        inv_freq = torch.tensor(config.layers[i].rope.inv_freq(), device=device)
        angle = torch.arange(first, tokens, device=device)[:, None].float() * inv_freq[None]
        for stream, c, d in zip("kv", sent, back):
            c, d = (x[:, first:].to(device).float() for x in (c, d))
            if stream == "k":
                c, d = (forward.unrotate(x, angle.cos(), angle.sin()) for x in (c, d))
            out += _heads(i, stream, c, d, inv_freq if stream == "k" else None)
    return out


def _heads(layer, stream, c, d, inv_freq):
    shift = d.mean(1) - c.mean(1)
    c, d = c - c.mean(1, keepdim=True), d - d.mean(1, keepdim=True)
    over = lambda x: x.double().sum((1, 2))
    cc, dd, cd, ee = over(c * c), over(d * d), over(c * d), over((d - c) ** 2)
    tiny = 1e-30
    power = cc.clamp(min=tiny)
    turn = torch.zeros_like(cc)
    if inv_freq is not None:
        half = len(inv_freq)
        a, b, x, y = c[..., :half], c[..., half:2 * half], d[..., :half], d[..., half:2 * half]
        re, im = (a * x + b * y).double().sum(1), (a * y - b * x).double().sum(1)
        weight, w = torch.sqrt(re * re + im * im), inv_freq.double()
        turn = ((weight * w * torch.atan2(im, re)).sum(1)
                / (weight * w * w).sum(1).clamp(min=tiny))
    values = torch.stack([
        torch.where(dd > 0, cd / dd.clamp(min=tiny), torch.ones_like(cd)), cd / power,
        torch.sqrt(shift.double().pow(2).sum(1) * c.shape[1] / power),
        torch.sqrt(ee / power), turn], 1).tolist()
    return [Head(layer, stream, h, *v) for h, v in enumerate(values)]


def over_passages(lists):
    """One list of Head from one a passage: the median of each figure."""
    by_place = {}
    for heads in lists:
        for h in heads:
            by_place.setdefault((h.layer, h.stream, h.head), []).append(h)
    figures = ("gain_cd", "gain_dc", "offset", "noise", "turn")
    return [Head(*place, *(statistics.median(getattr(h, f) for h in found) for f in figures))
            for place, found in by_place.items()]


def faults(heads):
    """What no honest codec does: a list of sentences, empty when all is well."""
    out = []
    for stream in "kv":
        of_stream = [h for h in heads if h.stream == stream]
        if not of_stream:
            continue
        # the gain that this codec keeps alike in all heads is the one to hold it to
        kept = min(("gain_cd", "gain_dc"),
                   key=lambda g: _deviation([getattr(h, g) for h in of_stream]))
        gains = [getattr(h, kept) for h in of_stream]
        usual, spread = statistics.median(gains), _SPREAD * _deviation(gains)
        for h in of_stream:
            if h.noise > _UNJUDGED:
                continue
            where = f"layer {h.layer} {stream.upper()} head {h.head}"
            if abs(h.turn) > max(_TURN[0], _TURN[1] * h.noise):
                out.append(f"{where}: keys are turned by {h.turn:.2f} positions")
            if h.offset > max(_OFFSET[0], _OFFSET[1] * h.noise):
                out.append(f"{where}: the mean is off by {h.offset:.2f} of the rms "
                           f"(noise {h.noise:.2f})")
            slack = max(_GAIN[0], _GAIN[1] * h.noise ** 2, spread)
            if abs(getattr(h, kept) - usual) > slack:
                out.append(f"{where}: {kept} is {getattr(h, kept):.3f}, the others' "
                           f"{usual:.3f} +- {slack:.3f}")
    return out


def _deviation(values):
    """1.48 times the median distance from the median: sigma, if they were normal."""
    middle = statistics.median(values)
    return 1.4826 * statistics.median(abs(v - middle) for v in values)
