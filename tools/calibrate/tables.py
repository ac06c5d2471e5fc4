"""Static entropy tables and centroids from counts of symbols (FORMAT.md 2.3, 3.3).

Counts are kept per class for symbols -WIDE..WIDE; what is beyond counts at the ends.
"""

import dataclasses

import numpy as np
import torch

CLASSES = 40
WIDE = 8191
TOTAL = 4096
MAX_SYMBOLS = 255
ESCAPE_BITS = 16


def symbol_class(sigma16, a, k, step):
    """Class of each (token, row): sigma16 [rows], a and k [tokens], all int64."""
    e = sigma16[None, :] + (8 * (a - 8) + 8 * k)[:, None] - 2 * step
    return (((5 * e + 16) >> 5) + 16).clamp(0, CLASSES - 1)


def ratio_of(c):
    """sigma / step at the middle of class c."""
    return 2.0 ** ((c - 16) / 2.5)


class Counts:
    """What the tables of one set are fitted to."""

    def __init__(self, device):
        self.symbols = torch.zeros(CLASSES, 2 * WIDE + 1, dtype=torch.float64, device=device)
        self.magnitude = torch.zeros(CLASSES, 4, dtype=torch.float64, device=device)
        self.magnitude_count = torch.zeros(CLASSES, 4, dtype=torch.float64, device=device)
        self.amplitude = torch.zeros(16, dtype=torch.float64, device=device)
        self.step = torch.zeros(13, dtype=torch.float64, device=device)

    def add(self, coded):
        """coded: reference.Coded of some tokens."""
        wide = 2 * WIDE + 1
        q = coded.q.clamp(-WIDE, WIDE)
        flat = (coded.cls * wide + q + WIDE)[coded.present]
        self.symbols += torch.bincount(flat, minlength=CLASSES * wide).view(CLASSES, wide)
        m = coded.q.abs()
        near = coded.present & (m <= 3)
        key = (coded.cls * 4 + m)[near]
        self.magnitude += torch.bincount(
            key, weights=coded.scaled.abs()[near].double(), minlength=CLASSES * 4).view(-1, 4)
        self.magnitude_count += torch.bincount(key, minlength=CLASSES * 4).view(-1, 4)
        self.amplitude += torch.bincount(coded.a, minlength=16)
        self.step += torch.bincount(coded.k + 6, minlength=13)

    def __iadd__(self, other):
        for name, value in vars(other).items():
            getattr(self, name).add_(value)
        return self


@dataclasses.dataclass
class TableSet:
    """shape int16 [42, 3]; freq: list of 42 int arrays (n + 1: the escape last);
    centroids float32 [40, 3]."""

    shape: np.ndarray
    freq: list
    centroids: np.ndarray

    def cost(self, device):
        """Bits of every symbol: float32 [CLASSES, 2 WIDE + 1]."""
        q = np.arange(-WIDE, WIDE + 1)
        out = np.zeros((CLASSES, len(q)), np.float32)
        for c in range(CLASSES):
            lo, n, shift = (int(v) for v in self.shape[c])
            bits = -np.log2(np.maximum(self.freq[c], 1) / TOTAL)
            v = (q >> shift) - lo
            inside = (v >= 0) & (v < n)
            out[c] = np.where(inside, bits[np.clip(v, 0, n - 1)] + shift,
                              bits[n] + ESCAPE_BITS)
        return torch.as_tensor(out, device=device)

    def class_cost(self, device):
        """Bits of the amplitude classes [16] and the step classes [13]."""
        return [torch.as_tensor(-np.log2(self.freq[t][:-1] / TOTAL), dtype=torch.float32,
                                device=device) for t in (40, 41)]


def fit(counts):
    """TableSet for the counts."""
    symbols = counts.symbols.cpu().numpy()
    shape, freq = np.zeros((42, 3), np.int16), []
    for c in range(CLASSES):
        lo, f, shift = fit_class(c, symbols[c])
        shape[c] = lo, len(f) - 1, shift
        freq.append(f)
    for t, (lo, h) in enumerate(((0, counts.amplitude), (-6, counts.step))):
        f = integer_frequencies(h.cpu().numpy() + 0.5, TOTAL)
        shape[40 + t] = lo, len(f), 0
        freq.append(np.append(f, 0))
    return TableSet(shape, freq, centroids(counts))


def centroids(counts):
    """Mean of abs(y) / step where abs(q) = 1, 2, 3; a prior of 50 in the middle."""
    total, n = counts.magnitude.cpu().numpy(), counts.magnitude_count.cpu().numpy()
    middle = np.arange(4)
    out = (total + 50 * middle) / (n + 50)
    return np.clip(out, middle - 0.5, middle + 0.5)[:, 1:].astype(np.float32)


def fit_class(c, h):
    """(lo, frequencies with the escape's last, shift) of one class from its counts."""
    shift = int(np.clip(np.round(np.log2(ratio_of(c) / 16)), 0, 8))
    q = np.arange(-WIDE, WIDE + 1)
    # a prior of 100 symbols: two-sided exponential of the class's width
    width = max(ratio_of(c), 0.15)
    prior = np.exp(-np.abs(q) * np.sqrt(2) / width)
    h = h + 100 * prior / prior.sum()
    v = q >> shift
    lo = int(v[0])
    merged = np.bincount(v - lo, weights=h)
    # symbols outside [first, last] escape; start from the 255 around zero
    zero = -lo
    first, last = max(0, zero - 127), min(len(merged) - 1, zero + 127)

    def solve(first, last):
        inside = merged[first:last + 1]
        escape = merged.sum() - inside.sum()
        f = integer_frequencies(np.append(inside, escape + 0.02), TOTAL)
        p = np.append(inside, escape)
        return float((p * -np.log2(f / TOTAL)).sum() + escape * (ESCAPE_BITS - shift)), f

    best, f = solve(first, last)
    size = 16
    while size:
        moved = False
        for a, b in ((first + size, last), (first, last - size)):
            if a > zero or b < zero:
                continue
            cost, g = solve(a, b)
            if cost <= best:
                best, f, first, last, moved = cost, g, a, b, True
        if not moved:
            size //= 2
    return first + lo, f, shift


def integer_frequencies(weights, total):
    """Integers >= 1 in proportion to the weights that sum to `total` (near-optimal: the
    remainder goes where it saves most)."""
    w = np.maximum(np.asarray(weights, np.float64), 0)
    p = w / w.sum()
    f = np.maximum(1, np.floor(p * total)).astype(np.int64)
    while f.sum() != total:
        if f.sum() < total:
            f[np.argmax(w * np.log2((f + 1) / f))] += 1
        else:
            loss = np.where(f > 1, w * np.log2(f / np.maximum(f - 1, 1)), np.inf)
            f[np.argmin(loss)] -= 1
    return f
