"""A slow, plain encoder and decoder of a profile, up to the entropy coder.

Counts ideal code length (the tables' cross-entropy), not bytes. The C++ codec is the
product; this is for calibration and for checking it.
"""

import dataclasses

import torch

from tools.calibrate import fit, sensitivity, tables

PAGE = 128
ACTIVE = -21  # sigma / step >= about .4, in 1/16 octaves
ROUNDING = 0.54  # of new profiles: see docs/fklt.md
SINK_BITS = 10
SINK_SENSITIVITY = 2048  # FORMAT.md 5.5


@dataclasses.dataclass
class Coded:
    """Tokens of one group, quantised. Shapes [tokens, rows] and [tokens]."""

    q: torch.Tensor        # int64
    scaled: torch.Tensor   # y / step_t, float32
    cls: torch.Tensor      # int64
    present: torch.Tensor  # bool: row < rows(k_t)
    a: torch.Tensor
    k: torch.Tensor
    weight: torch.Tensor   # predicted sensitivity, float32
    step: torch.Tensor     # step_t, float32
    energy: torch.Tensor   # sum of y^2 over the rows that are not coded, float64


def rows_of(sigma16, step, k):
    """rows(k): how many leading coordinates reach the threshold. sigma16: best on the host
    (Transform.host_sigma16), where asking stops no GPU."""
    return int((sigma16.to(torch.int64) - 2 * step + 8 * k >= ACTIVE).sum())


def quantise(transform, coefficients, x, step, rounding=ROUNDING, use_classes=True):
    """x [tokens, D] (no sinks) -> Coded at step exponent `step`."""
    m = (len(coefficients) - 1) // 2
    sigma16 = transform.sigma16.to(torch.int64)
    y = transform.forward(x)
    sigma = torch.exp2(sigma16.float() / 16)
    weight = sensitivity.predict(sensitivity.features(y, sigma, m), coefficients)
    k = sensitivity.step_class(weight)
    if not use_classes:
        k = torch.zeros_like(k)
    base = rows_of(transform.host_sigma16, step, 0)
    if base:
        a2 = (y[:, :base] / sigma[:base]).pow(2).mean(1)
        a = (torch.round(torch.log2(a2.clamp(min=1e-9))) + 8).clamp(0, 15).to(torch.int64)
    else:
        a = torch.full_like(k, 8)
    count = max(rows_of(transform.host_sigma16, step, int(k.max())) if len(k) else 0, 1)
    beyond = y[:, count:].double().pow(2).sum(1)
    y, sigma16 = y[:, :count], sigma16[:count]
    step_t = torch.exp2((step - 4 * k).float() / 8)
    scaled = y / step_t[:, None]
    present = sigma16[None, :] - 2 * step + 8 * k[:, None] >= ACTIVE
    q = torch.where(present, torch.sign(scaled) * torch.floor(scaled.abs() + rounding),
                    torch.zeros_like(scaled))
    # not |z|^2 less the coded rows' energy: U in f16 is not orthogonal enough for that
    dropped = beyond + (y.double() * ~present).pow(2).sum(1)
    return Coded(q.to(torch.int64), scaled, tables.symbol_class(sigma16, a, k, step), present,
                 a, k, weight, step_t, dropped)


def dequantise(coded, centroids):
    """Coded -> y^ [tokens, rows] float32."""
    m = coded.q.abs().clamp(max=3)
    near = torch.cat([torch.zeros_like(centroids[:, :1]), centroids], 1)[coded.cls, m]
    value = torch.where(coded.q.abs() > 3, coded.q.abs().float(), near)
    return torch.sign(coded.q).float() * value * coded.step[:, None]


def squared_error(coded, y_hat):
    """|e_t|^2 over all coordinates of the group, dropped rows included: [tokens] float64."""
    y = coded.scaled * coded.step[:, None]
    e = torch.where(coded.present, y - y_hat, torch.zeros_like(y))
    return e.double().pow(2).sum(1) + coded.energy


def code_bits(coded, cost, class_cost):
    """Ideal bits of the tokens, coordinates and classes: a tensor of one number."""
    q = coded.q.clamp(-tables.WIDE, tables.WIDE) + tables.WIDE
    symbols = (cost[coded.cls, q] * coded.present).double().sum()
    return (symbols + class_cost[0][coded.a].double().sum()
            + class_cost[1][coded.k + 6].double().sum())


def tile_overhead_bits(coded):
    """About what a tile's framing costs beyond ideal code length, in pages of 128 tokens
    (mode and sizes, lanes' states): a tensor of one number."""
    tokens = len(coded.k)
    tiles = -(-tokens // PAGE)
    padded = torch.zeros(tiles * PAGE, coded.present.shape[1], dtype=torch.bool,
                         device=coded.k.device)
    padded[:tokens] = coded.present
    each = torch.full((tiles,), PAGE, dtype=torch.int64, device=coded.k.device)
    each[-1] = tokens - (tiles - 1) * PAGE
    symbols = (padded.view(tiles, PAGE, -1).any(1).sum(1) + 2) * each
    segments = (symbols + 16383) // 16384
    lanes = torch.exp2(torch.ceil(torch.log2((symbols / segments / 512).clamp(1, 32))))
    return (8 * (4 + 2 * (segments - 1) + segments * lanes * 2)).sum().double()


def code_sinks(transform, x):
    """Sinks in 10 bits (FORMAT.md 3.7), x [sinks, D] -> (decoded, bits, predicted cost of all)."""
    n, d = transform.L.shape[:2]
    centred = (x - transform.mu).view(len(x), n, d)
    largest = centred.abs().amax(2, keepdim=True).double().clamp(min=1e-30)
    exponent = torch.ceil(8 * torch.log2(largest / 511.5)).clamp(-192, 63)
    step = torch.exp2(exponent / 8)
    q = torch.round(centred / step).clamp(-512, 511)
    decoded = (q * step).float().reshape(x.shape) + transform.mu
    error = transform.whiten(decoded - x + transform.mu)
    bits = SINK_BITS * x.numel() + 8 * n * len(x)
    return decoded, bits, 0.5 * SINK_SENSITIVITY * error.double().pow(2).sum()


@dataclasses.dataclass
class Result:
    x: torch.Tensor     # what the decoder returns, before K is rotated and rounded
    bits: float         # ideal, everything a decoder needs, sinks in 10 bits an element
    framing_bits: float
    predicted: float    # sum over groups of mean over all tokens of 1/2 w |e|^2, no kappa
    per_group: list     # the same, a group each
    active: float       # share of coordinates that are coded, at k = 0


def run(profile, x, step, table_set=0, sinks=fit.SINKS, counts=None, cost=None, **options):
    """Encodes and decodes x [tokens, elements] whose first token is at position 0.

    profile: profile.Profile (or anything with groups, transforms, coefficients, tables).
    counts: tables.Counts to add the symbols to.
    """
    device = x.device
    tables_ = profile.tables[table_set]
    cost = cost if cost is not None else tables_.cost(device)
    class_cost = tables_.class_cost(device)
    centroids = torch.as_tensor(tables_.centroids, device=device)
    options.setdefault("rounding", profile.rounding)
    sink_bits = 0
    out = x.clone()
    # sums stay on the device until the end: asking for each would stop a GPU between groups
    bits, framing, per_group, active = [], [], [], 0
    for group, t, c in zip(profile.groups, profile.transforms, profile.coefficients):
        index = torch.as_tensor(group.index, device=device)
        coded = quantise(t, c, x[sinks:, index], step, **options)
        if counts is not None:
            counts.add(coded)
        y_hat = dequantise(coded, centroids)
        out[sinks:, index] = t.inverse(y_hat)
        out[:sinks, index], more, sink_cost = code_sinks(t, x[:sinks, index])
        sink_bits += more
        bits.append(code_bits(coded, cost, class_cost))
        framing.append(tile_overhead_bits(coded))
        error = squared_error(coded, y_hat)
        per_group.append(((0.5 * coded.weight.double() * error).sum() + sink_cost) / x.shape[0])
        active += rows_of(t.host_sigma16, step, 0)
    per_group = torch.stack(per_group).tolist()
    return Result(out, sink_bits + float(torch.stack(bits).sum()),
                  float(torch.stack(framing).sum()), sum(per_group), per_group,
                  active / x.shape[1])
