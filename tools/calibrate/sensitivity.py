"""How much a token matters, predicted from its coordinates (FORMAT.md 5.2).

s = mean over a group's elements of g^T M^-1 g, relative to the mean token: how much more an
error in this token costs than the metric, an average, says. It is noisy (g is one sample),
so it is regressed on what the encoder knows: eta = b + sum c u + d u^2 over the leading
coordinates u = y / sigma, and s ~ exp(eta). Poisson likelihood, Newton's method, a ridge.
"""

import torch

FEATURES = 96
CLAMP = 8.0


def sample(g, factor):
    """g [draws, tokens, n * d] -> g^T M^-1 g / (n d), averaged over draws: [tokens]."""
    n, d = factor.shape[:2]
    total = torch.zeros(g.shape[1], dtype=torch.float64, device=g.device)
    for draw in g:
        rows = draw.double().view(-1, n, d).permute(1, 2, 0)  # [n, d, tokens]
        white = torch.linalg.solve_triangular(factor, rows, upper=False)
        total += white.pow(2).sum((0, 1))
    return total / (len(g) * n * d)


def features(y, sigma, m):
    """y [tokens, >= m] -> [tokens, 2 m]: u and u^2."""
    u = (y[:, :m] / sigma[:m]).clamp(-CLAMP, CLAMP)
    return torch.cat([u, u * u], dim=1)


def fit(f, s, ridge=1e-3, rounds=30):
    """Coefficients [1 + 2m] float32 of eta; f [tokens, 2m], s [tokens] (mean about 1)."""
    s = (s / s.mean()).double()
    x = torch.cat([torch.ones(len(s), 1, dtype=torch.float64, device=f.device), f.double()], 1)
    penalty = torch.full((x.shape[1],), ridge, dtype=torch.float64, device=f.device)
    penalty[0] = 0
    w = torch.zeros(x.shape[1], dtype=torch.float64, device=f.device)

    def loss(w):
        eta = (x @ w).clamp(-CLAMP, CLAMP)
        return (eta.exp() - s * eta).mean() + 0.5 * (penalty * w * w).sum()

    now = loss(w)
    for _ in range(rounds):
        rate = (x @ w).clamp(-CLAMP, CLAMP).exp()
        gradient = x.T @ (rate - s) / len(s) + penalty * w
        hessian = (x * rate[:, None]).T @ x / len(s) + torch.diag(penalty + 1e-9)
        step = torch.linalg.solve(hessian, gradient)
        size = 1.0
        while size > 1e-4 and not bool(loss(w - size * step) < now):
            size /= 2
        if size <= 1e-4:
            break
        w, before = w - size * step, now
        now = loss(w)
        if float(before - now) < 1e-7:
            break
    return w.float()


def predict(f, coefficients):
    """Predicted sensitivity, relative to the mean token: [tokens]."""
    eta = coefficients[0] + f @ coefficients[1:].to(f.dtype)
    return eta.clamp(-CLAMP, CLAMP).exp()


def step_class(w):
    """k = clamp(round(.5 log2 w), -6, 6): the token's step is step * 2^(-k/2)."""
    return torch.round(0.5 * torch.log2(w)).clamp(-6, 6).to(torch.int64)
