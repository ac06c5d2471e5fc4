"""Statistics of paired runs: a clean one and one with a decoded cache.

A passage is the unit: its mean change of negative log-likelihood is one observation, and
intervals are over passages (Student's t). Tokens of one passage are not independent.
"""

import dataclasses
import math

from bench.quality import fidelity

# Two-sided 95 % points of Student's t by degrees of freedom; between them 1/df is
# interpolated, which is off by less than .002.
_T95 = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 6: 2.4469, 7: 2.3646,
        8: 2.3060, 9: 2.2622, 10: 2.2281, 12: 2.1788, 15: 2.1314, 20: 2.0860, 30: 2.0423,
        60: 2.0003, 120: 1.9799, math.inf: 1.9600}

KLD_LIMIT = 0.0105  # nats a token


def t95(df):
    """The two-sided 95 % point of Student's t; df >= 1."""
    if df in _T95:
        return _T95[df]
    low = max(k for k in _T95 if k < df)
    high = min(k for k in _T95 if k > df)
    share = (1 / low - 1 / df) / (1 / low - 1 / high)
    return _T95[low] + share * (_T95[high] - _T95[low])


def mean(values):
    return math.fsum(values) / len(values)


def half_interval(values):
    """Half the 95 % interval of the mean; nan for fewer than two values."""
    n = len(values)
    if n < 2:
        return math.nan
    m = mean(values)
    variance = math.fsum((x - m) ** 2 for x in values) / (n - 1)
    return t95(n - 1) * math.sqrt(variance / n)


def percentile(values, q):
    """The q-th percentile (0..100), linear between order statistics."""
    ordered = sorted(values)
    at = (len(ordered) - 1) * q / 100
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


@dataclasses.dataclass(frozen=True)
class PassageScore:
    """One passage under one codec, variant and protocol.

    dnll: mean over scored tokens of nll' - nll, nats. kl: KL(clean || decoded) of every
    scored token, nats. top1: share of tokens with equal argmax. bytes as the store counts.
    """

    kind: str
    passage: int
    dnll: float
    nll: float
    kl: tuple
    top1: float
    raw_bytes: int
    stored_bytes: int  # 0: nothing is stored in this form
    heads: tuple = ()  # rows of fidelity.Head of all that came back, where it was measured

    @property
    def kld(self):
        return mean(self.kl)


@dataclasses.dataclass(frozen=True)
class Summary:
    """Scores over passages. dppl, dppl_half, top1 in percent; kld, kld_half, p99 in nats."""

    passages: int
    tokens: int
    ppl: float
    dppl: float
    dppl_half: float
    kld: float
    kld_half: float
    p99: float
    top1: float
    worst_kind: str
    worst_passage: int
    worst_kld: float
    raw_bytes: int
    stored_bytes: int  # 0: nothing is stored in this form
    faults: tuple      # sentences of fidelity.faults

    @property
    def ratio(self):
        return self.raw_bytes / self.stored_bytes if self.stored_bytes else math.nan

    @property
    def bits(self):
        """Stored bits an element of K and V."""
        return 16 * self.stored_bytes / self.raw_bytes if self.stored_bytes else math.nan


def summarise(scores):
    """Summary of a list of PassageScore, at least one; every passage weighs the same."""
    dnll = [s.dnll for s in scores]
    kld = [s.kld for s in scores]
    m = mean(dnll)
    worst = max(scores, key=lambda s: s.kld)
    return Summary(
        passages=len(scores), tokens=sum(len(s.kl) for s in scores),
        ppl=math.exp(mean([s.nll for s in scores])),
        dppl=100 * math.expm1(m), dppl_half=100 * math.exp(m) * half_interval(dnll),
        kld=mean(kld), kld_half=half_interval(kld),
        p99=percentile([x for s in scores for x in s.kl], 99),
        top1=100 * mean([s.top1 for s in scores]),
        worst_kind=worst.kind, worst_passage=worst.passage, worst_kld=worst.kld,
        raw_bytes=sum(s.raw_bytes for s in scores),
        stored_bytes=sum(s.stored_bytes for s in scores),
        faults=tuple(fidelity.faults(fidelity.over_passages(
            [map(fidelity.Head.from_row, s.heads) for s in scores if s.heads and s.stored_bytes]))))


def verdict(summary, lossless=False):
    """ACCEPT: |dPPL| <= 1 % and top-1 >= 95 %; MARGINAL: <= 3 % and >= 85 %; else REJECT.
    A codec that promises the same bits back must score exactly zero, or is REJECT. So is one
    whose cache came back wrong in a way that no honest codec has (fidelity.faults)."""
    if summary.faults:
        return "REJECT"
    if lossless:
        exact = summary.dppl == 0 and summary.kld == 0 and summary.top1 == 100
        return "ACCEPT" if exact else "REJECT"
    if abs(summary.dppl) <= 1 and summary.top1 >= 95:
        return "ACCEPT"
    if abs(summary.dppl) <= 3 and summary.top1 >= 85:
        return "MARGINAL"
    return "REJECT"


def passes(summary, lossless=False):
    """Our own bar: |dPPL| less its interval <= 1 %, top-1 >= 95 %, KLD <= .0105."""
    if lossless or summary.faults:
        return verdict(summary, lossless) == "ACCEPT"
    slack = 0 if math.isnan(summary.dppl_half) else summary.dppl_half
    return (abs(summary.dppl) - slack <= 1 and summary.top1 >= 95
            and summary.kld <= KLD_LIMIT)
