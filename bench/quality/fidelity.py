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
# What is allowed. Set on four models' caches, 157 rows of codecs at 0.5 to 16 bits and of planted
# faults: all faults and no honest codec lie outside. Five percent of gain must not be allowed.
_GAIN = (0.02, 0.12)   # of the gain: this, and this much of noise^2; or ...
_SPREAD = 4            # ... this many times the other heads' deviation, if that is more
_TURN = (0.2, 0.5)     # positions; or times noise
_OFFSET = (0.1, 1.5)   # of c's rms; or times noise
_UNJUDGED = 0.7        # heads with more noise were given up: of them only the loss can tell


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
        judged = [h for h in of_stream if h.noise <= _UNJUDGED]
        for h in of_stream:
            where = f"layer {h.layer} {stream.upper()} head {h.head}"
            # a wrong turn makes noise itself, so it is judged up to no correlation at all
            if h.noise <= 1 and abs(h.turn) > max(_TURN[0], _TURN[1] * h.noise):
                out.append(f"{where}: keys are turned by {h.turn:.2f} positions")
            if h.offset > max(_OFFSET[0], _OFFSET[1] * h.noise):
                out.append(f"{where}: the mean is off by {h.offset:.2f} of the rms "
                           f"(noise {h.noise:.2f})")
        if not judged:
            continue
        # the gain that this codec keeps alike in all heads is the one to hold it to; gain_dc
        # only where it is clearly that one, for it varies with the noise of a decoder that shrinks
        name, residuals = "gain_cd", _residuals(judged, "gain_cd")
        other = _residuals(judged, "gain_dc")
        if _deviation(other) < _deviation(residuals) / 2:
            name, residuals = "gain_dc", other
        spread = _SPREAD * _deviation(residuals)
        for h, residual in zip(judged, residuals):
            slack = max(_GAIN[0] + _GAIN[1] * h.noise ** 2, spread)
            if abs(residual) > slack:
                gain = getattr(h, name)
                out.append(f"layer {h.layer} {stream.upper()} head {h.head}: {name} is {gain:.3f}, "
                           f"by the others {gain - residual:.3f} +- {slack:.3f}")
    return out


def _residuals(heads, name):
    """What is left of a gain when its median line over noise^2 is taken out (Theil and Sen:
    the median slope of all pairs): some decoders shrink more where they know less."""
    x = [h.noise ** 2 for h in heads]
    y = [getattr(h, name) for h in heads]
    slopes = [(y[j] - y[i]) / (x[j] - x[i]) for i in range(len(x)) for j in range(i)
              if abs(x[j] - x[i]) > 0.01]
    slope = statistics.median(slopes) if slopes else 0.0
    level = statistics.median(b - slope * a for a, b in zip(x, y))
    return [b - slope * a - level for a, b in zip(x, y)]


def _deviation(values):
    """1.48 times the median distance from the median: sigma, if they were normal."""
    middle = statistics.median(values)
    return 1.4826 * statistics.median(abs(v - middle) for v in values)
