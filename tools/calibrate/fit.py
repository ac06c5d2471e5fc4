"""Mean, covariance and Fisher metric of the captured vectors, and the transforms they give.

Everything is accumulated in float64 from float32 products of one passage. The first SINKS
tokens of a passage are left out: they are stored as they come (their keys and values have
another distribution, and errors in them cost a hundred times more).
"""

import dataclasses

import numpy as np
import torch

SINKS = 4
RIDGE = 0.02


class FitError(ArithmeticError):
    """Statistics that give no transform; the message says where and why."""


class Moments:
    """Running mean and covariance over blocks of elements (disjoint index sets)."""

    def __init__(self, elements, block_index, device):
        self.device = torch.device(device)
        self.blocks = [torch.as_tensor(b, device=self.device) for b in block_index]
        self.count = 0
        self.shift = None  # the first passage's mean: keeps products small
        self.sum = torch.zeros(elements, dtype=torch.float64, device=self.device)
        self.products = [torch.zeros(len(b), len(b), dtype=torch.float64, device=self.device)
                         for b in block_index]

    def add(self, x):
        """x: float32 [tokens, elements], sinks left out."""
        if self.shift is None:
            self.shift = x.mean(0)
        y = x - self.shift
        self.count += y.shape[0]
        self.sum += y.sum(0, dtype=torch.float64)
        for block, total in zip(self.blocks, self.products):
            part = y[:, block]
            total += part.T @ part

    def mean(self):
        return self.shift.double() + self.sum / self.count

    def covariance(self, index):
        """Covariance [n, n] float64 of the elements `index`, which one block must hold."""
        index = torch.as_tensor(index, device=self.device)
        for block, total in zip(self.blocks, self.products):
            at = torch.searchsorted(block, index)
            at = at.clamp(max=len(block) - 1)
            if bool((block[at] == index).all()):
                d = self.sum[index] / self.count
                return total[at][:, at] / self.count - d[:, None] * d[None, :]
        raise FitError("a group is in no block of the moments: they were kept for another "
                       "partition")


class Metric:
    """Running second moment of the gradients, one matrix a sub-vector."""

    def __init__(self, layout, device):
        self.layout = layout
        self.count = 0
        dims = {s.dim for s in layout.sub_vectors}
        if len(dims) != 1:
            raise FitError(f"head dimensions differ ({sorted(dims)}): not supported yet")
        n, d = len(layout.sub_vectors), dims.pop()
        self.total = torch.zeros(n, d, d, dtype=torch.float64, device=device)

    def add(self, g):
        """g: [draws, tokens, elements], sinks left out."""
        n, d = self.total.shape[:2]
        for draw in g:
            heads = draw.float().view(-1, n, d).transpose(0, 1)
            # gradients are small: keep float32 products in range
            scale = float(heads.abs().amax().clamp(min=1e-30))
            heads = heads / scale
            self.total += (heads.transpose(1, 2) @ heads).double() * scale * scale
            self.count += draw.shape[0]

    def matrix(self):
        """M [sub-vectors, d, d] float64, with its ridge."""
        m = self.total / max(self.count, 1)
        diagonal = m.diagonal(dim1=1, dim2=2).mean(1)
        bad = torch.nonzero(~(diagonal > 0))
        if len(bad):
            s = self.layout.sub_vectors[int(bad[0])]
            p = self.layout.planes[s.plane]
            raise FitError(f"layer {p.layer} {p.stream} head {s.head}: the metric is zero or not "
                           "finite: does the model read this head at all?")
        eye = torch.eye(m.shape[1], dtype=m.dtype, device=m.device)
        return m + RIDGE * diagonal[:, None, None] * eye


@dataclasses.dataclass
class Transform:
    """y = U L^T (x - mu), as stored (rounded); what codec/fklt/FORMAT.md 2.2 calls a group.

    mu float32 [D]; L float32 [members, d, d] (true values); U float16 [D, D], a row a
    coordinate; sigma16 int16 [D] = round(16 log2 sigma), falling.
    """

    mu: torch.Tensor
    L: torch.Tensor
    U: torch.Tensor
    sigma16: torch.Tensor

    def __post_init__(self):
        self.host_sigma16 = self.sigma16.cpu()  # asked for often: see reference.rows_of

    @property
    def sigma(self):
        return torch.exp2(self.sigma16.float() / 16)

    def forward(self, x, rows=None):
        """x [tokens, D] -> y [tokens, rows] float32."""
        return self.whiten(x) @ self.U[:rows].float().T

    def whiten(self, x):
        """x -> z = L^T (x - mu) [tokens, D]."""
        n, d = self.L.shape[:2]
        parts = (x - self.mu).view(-1, n, d).transpose(0, 1)
        return (parts @ self.L).transpose(0, 1).reshape(-1, n * d)

    def inverse(self, y):
        """y [tokens, rows] (the first rows; the others zero) -> x [tokens, D]."""
        n, d = self.L.shape[:2]
        z = (y @ self.U[:y.shape[1]].float()).view(-1, n, d).transpose(0, 1)
        # rows: z = e L  =>  e = z L^-1
        e = torch.linalg.solve_triangular(self.L.transpose(1, 2), z.transpose(1, 2),
                                          upper=True).transpose(1, 2)
        return e.transpose(0, 1).reshape(-1, n * d) + self.mu


def cholesky(metric, layout):
    """L of M = L L^T for every sub-vector, float64."""
    factor, info = torch.linalg.cholesky_ex(metric)
    if bool((info != 0).any()):
        s = layout.sub_vectors[int(torch.nonzero(info)[0])]
        p = layout.planes[s.plane]
        raise FitError(f"layer {p.layer} {p.stream} head {s.head}: the metric is not positive "
                       "definite: calibrate on more text or with more draws")
    return factor


def l_scale_log2(factor):
    """Power of two that brings the largest Cholesky element to about 2^10, within f16."""
    return int(np.clip(np.floor(np.log2(float(factor.abs().max()))) - 10, -64, 64))


def transform(mean, covariance, factor, scale_log2):
    """One group's Transform from its mean [D], covariance [D, D] and factors [n, d, d]."""
    scale = 2.0 ** scale_log2
    low = torch.tril((factor / scale).to(torch.float16).double()) * scale
    # a tiny diagonal must survive rounding
    tiny = scale * 2.0 ** -24
    low.diagonal(dim1=1, dim2=2).clamp_(min=tiny)
    n, d = low.shape[:2]
    mu = mean.float()
    c = covariance.double().view(n, d, n, d)
    a = torch.einsum("aij,aibk->ajbk", low, c)        # L^T C
    a = torch.einsum("ajbk,bkl->ajbl", a, low).reshape(n * d, n * d)
    a = (a + a.T) / 2
    if not bool(torch.isfinite(a).all()):
        raise FitError("a covariance is not finite")
    values, vectors = torch.linalg.eigh(a)
    u = vectors.T.flip(0).to(torch.float16)           # a row a coordinate, falling
    variance = (u.double() @ a * u.double()).sum(1)
    floor = float(variance.max()) * 1e-14 + 1e-30
    sigma16 = torch.round(8 * torch.log2(variance.clamp(min=floor))).clamp(-1024, 1023)
    order = torch.argsort(-sigma16, stable=True)
    return Transform(mu, low.float(), u[order].contiguous(), sigma16[order].to(torch.int16))
