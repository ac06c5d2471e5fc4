"""The steps of a calibration, from passages to profiles. __main__.py is its command."""

import dataclasses
import hashlib
import json
import os
import pathlib
import sys
import time

import numpy as np
import torch

from tools.calibrate import capture, fit, layout as layout_lib, profile, protocol, reference
from tools.calibrate import sensitivity, tables

TARGETS = (0.002, 0.005, 0.009)  # KLD of the presets, nats a token
# Text of other sources than the calibration's loses more than its own kinds of text do at the
# same step: 1.2 to 1.6 times where it was measured (docs/fklt.md). Steps are chosen, and
# kappa is scaled, so that presets and certificates hold there.
TRANSFER = 1.4
# A tile whose predicted loss is over this many times the worst seen while measuring is
# stored finer.
TILE_MARGIN = 1.5
# Tables need fewer passages than transforms: 32,000 tokens are 10^8 symbols.
TABLE_PASSAGES = 16


class Progress:
    """One line on a terminal, rewritten; a line a step elsewhere."""

    def __init__(self, label, total, stream=sys.stderr):
        self.label, self.total, self.stream = label, total, stream
        self.begin = time.monotonic()

    def at(self, done, note=""):
        seconds = time.monotonic() - self.begin
        left = seconds / done * (self.total - done) if done else 0
        bar = "#" * (20 * done // max(self.total, 1))
        end = "\r" if self.stream.isatty() and done < self.total else "\n"
        if self.stream.isatty() or done in (0, self.total) or done % max(1, self.total // 8) == 0:
            print(f"{self.label} [{bar:<20}] {done}/{self.total} {seconds:.0f} s"
                  f", {left:.0f} s left {note}", end=end, file=self.stream, flush=True)


class Store:
    """What was captured, a passage each: in memory, or as files of a work folder that a
    later run with the same plan goes on from."""

    def __init__(self, folder, plan, device):
        self.folder = pathlib.Path(folder) if folder else None
        self.device = device
        self.memory = {}
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / "plan.json"
            if path.exists() and json.loads(path.read_text()) != plan:
                raise fit.FitError(f"{self.folder} holds captures of another plan (model, text, "
                                   "passages, tokens, draws or seed differ): remove it, or name "
                                   "another with --work")
            path.write_text(json.dumps(plan))

    def has(self, i):
        return i in self.memory or (self.folder and (self.folder / f"{i:04d}.npz").exists())

    def put(self, i, captured):
        if not self.folder:
            self.memory[i] = captured
            return
        partial = self.folder / f"{i:04d}.partial.npz"
        np.savez(partial, x=captured.x.cpu().numpy(), nll=captured.nll,
                 g=captured.g.cpu().view(torch.int16).numpy())
        os.replace(partial, self.folder / f"{i:04d}.npz")

    def get(self, i):
        if i in self.memory:
            return self.memory[i]
        with np.load(self.folder / f"{i:04d}.npz") as f:
            return capture.Captured(torch.from_numpy(f["x"]).to(self.device),
                                    torch.from_numpy(f["g"]).view(torch.bfloat16).to(self.device),
                                    float(f["nll"]))


def capture_all(model, layout, passages, draws, seed, store):
    """Captures what the store does not hold yet; returns the mean nll."""
    progress, nll = Progress("capture", len(passages)), []
    for i, p in enumerate(passages):
        if not store.has(i):
            # a generator of its own: the same draws whether or not the run was interrupted
            generator = torch.Generator(model.device).manual_seed(seed * 1000003 + i)
            with protocol.tf32():
                store.put(i, capture.capture(model, layout, p.ids, draws, generator))
        nll.append(store.get(i).nll)
        progress.at(i + 1, f"perplexity {np.exp(np.mean(nll)):.1f}")
    return float(np.mean(nll))


def accumulate(layout, store, count, partitions, device):
    """Moments over the joined partitions' blocks, and the metric."""
    moments = fit.Moments(layout.elements, layout_lib.blocks(layout, partitions), device)
    metric, progress = fit.Metric(layout, device), Progress("statistics", count)
    for i in range(count):
        c = store.get(i)
        moments.add(c.x[fit.SINKS:])
        metric.add(c.g[:, fit.SINKS:])
        progress.at(i + 1)
    return moments, metric


@dataclasses.dataclass
class Draft:
    """A profile in the making: what reference.run needs."""

    layout: layout_lib.Layout
    groups: list
    transforms: list
    coefficients: list
    tables: list


def fit_transforms(layout, groups, moments, factor, scale):
    progress, out = Progress("transforms", len(groups)), []
    mean = moments.mean()
    for i, g in enumerate(groups):
        index = torch.as_tensor(g.index, device=mean.device)
        out.append(fit.transform(mean[index], moments.covariance(g.index),
                                 factor[list(g.sub_vectors)], scale))
        progress.at(i + 1)
    return out


def fit_sensitivity(groups, transforms, factor, store, count):
    """The predictor's coefficients of every group."""
    progress, out = Progress("sensitivity", len(groups)), []
    for n, (g, t) in enumerate(zip(groups, transforms)):
        m = min(sensitivity.FEATURES, g.size)
        f, s = [], []
        for i in range(count):
            c = store.get(i)
            index = torch.as_tensor(g.index, device=c.x.device)
            f.append(sensitivity.features(t.forward(c.x[fit.SINKS:, index], m), t.sigma, m))
            s.append(sensitivity.sample(c.g[:, fit.SINKS:, index], factor[list(g.sub_vectors)]))
        out.append(sensitivity.fit(torch.cat(f), torch.cat(s)))
        progress.at(n + 1)
    return out


def water_level(transforms, target):
    """The step exponent at which reverse water-filling predicts `target` nats a token."""
    variance = torch.cat([t.sigma.double().cpu() ** 2 for t in transforms])
    for i in range(400, -400, -1):
        if 0.5 * float(torch.minimum(variance, torch.tensor(4.0 ** (i / 8) / 12)).sum()) <= target:
            return i
    return -400


def count_symbols(draft, store, count, step, limit=None):
    """Counts of all symbols of the captured passages at one step."""
    counts = None
    for i in range(min(count, limit or count)):
        x = store.get(i).x
        if counts is None:
            counts = tables.Counts(x.device)
        reference.run(draft, x, step, counts=counts, cost=torch.zeros(
            tables.CLASSES, 2 * tables.WIDE + 1, device=x.device))
    return counts


def plain_tables(device):
    """Tables before anything was counted: only the priors."""
    return tables.fit(tables.Counts(device))


def measure(model, draft, passages, steps, label):
    """Prefix protocol on passages kept apart: a row (dict) a step, means over passages."""
    progress = Progress(label, len(passages))
    rows = {i: [] for i in steps}
    costs = draft.tables[0].cost(model.device)
    for n, p in enumerate(passages):
        clean = protocol.clean_run(model, draft.layout, p.ids)
        for i in steps:
            r = reference.run(draft, clean.x, i, cost=costs)
            s = protocol.score(model, draft.layout, clean, r.x).summary()
            rows[i].append({"kind": p.kind, "predicted": r.predicted, "active": r.active,
                            "bits": r.bits / clean.x.numel(),
                            "framing_bits": r.framing_bits / clean.x.numel(), **s})
        progress.at(n + 1)
    return rows


def mean_of(rows, key):
    return float(np.mean([r[key] for r in rows]))


def choose_steps(rows, targets=TARGETS):
    """The coarsest measured-or-interpolated exponent whose KLD, times TRANSFER, is within
    each target."""
    grid = sorted(rows)
    kld = np.log([max(TRANSFER * mean_of(rows[i], "kld"), 1e-9) for i in grid])
    kld = np.maximum.accumulate(kld)  # more step, more loss: noise aside
    out = []
    for t in targets:
        inside = [i for i in range(grid[0], grid[-1] + 1)
                  if np.interp(i, grid, kld) <= np.log(t)]
        out.append(max(inside) if inside else grid[0])
    return out


def tile_predictions(draft, x, step):
    """Predicted loss (kappa 1) of every tile of 128 tokens: float64 [groups, tiles]."""
    out = []
    centroids = torch.as_tensor(draft.tables[0].centroids, device=x.device)
    for group, t, c in zip(draft.groups, draft.transforms, draft.coefficients):
        index = torch.as_tensor(group.index, device=x.device)
        coded = reference.quantise(t, c, x[fit.SINKS:, index], step)
        error = reference.squared_error(coded, reference.dequantise(coded, centroids))
        each = torch.cat([torch.zeros(fit.SINKS, dtype=torch.float64, device=x.device),
                          0.5 * coded.weight.double() * error])
        out.append(torch.stack([part.mean() for part in each.split(reference.PAGE)]))
    return torch.stack(out)


def rounding_floor(model, draft, x, step):
    """What bf16 rounding of the decoded cache costs, predicted, a group each: [groups]."""
    r = reference.run(draft, x, step)
    e = protocol.rounding_error(model, draft.layout, r.x)
    out = []
    for group, t in zip(draft.groups, draft.transforms):
        index = torch.as_tensor(group.index, device=x.device)
        z = t.whiten(e[fit.SINKS:, index] + t.mu)
        out.append(0.5 * float(z.double().pow(2).sum()) / x.shape[0])
    return np.asarray(out)


def finish(model, draft, store, count, apart, meta):
    """Tables, step map, presets, kappa and certificates: a whole profile and a report."""
    device = model.device
    layout, transforms = draft.layout, draft.transforms
    draft.tables = [plain_tables(device)]
    lo, hi = water_level(transforms, TARGETS[0]), water_level(transforms, TARGETS[2])
    sample = min(count, 4)
    # first tables: at the expected presets, from a few passages
    first = tables.Counts(device)
    for i in (lo, (lo + hi) // 2, hi):
        first += count_symbols(draft, store, count, i, sample)
    draft.tables = [tables.fit(first)]
    grid = list(range(lo - 12, hi + 13, 6))
    rows = measure(model, draft, apart, grid, "step map")
    steps = choose_steps(rows)
    # final tables: at the presets, from more; all presets together and each alone
    each = [count_symbols(draft, store, count, i, TABLE_PASSAGES) for i in steps]
    pooled = tables.Counts(device)
    for counts in each:
        pooled += counts
    draft.tables = [tables.fit(pooled)]
    alone = [tables.fit(c) for c in each]
    rows.update(measure(model, draft, apart, sorted(set(steps)), "step map, final"))
    floors, cleans = np.zeros(len(draft.groups)), []
    for p in apart:
        cleans.append(protocol.clean_run(model, layout, p.ids).x)
        floors += rounding_floor(model, draft, cleans[-1], steps[0]) / len(apart)
    grid = sorted(rows)
    at = lambda i, key: float(np.exp(np.interp(
        i, grid, np.log([max(mean_of(rows[g], key), 1e-12) for g in grid]))))
    kappa = [TRANSFER * max(at(i, "kld") - floors.sum(), 0.1 * at(i, "kld"))
             / at(i, "predicted") for i in steps]
    worst = np.zeros((len(draft.groups), 3))
    for x in cleans:
        for j, i in enumerate(steps):
            worst[:, j] = np.maximum(worst[:, j], tile_predictions(draft, x, i)
                                     .amax(1).cpu().numpy())
    certificates = np.concatenate(
        [floors[:, None], TILE_MARGIN * worst * np.asarray(kappa) + floors[:, None]], 1)
    step_map = [(i, mean_of(rows[i], "bits"), TRANSFER * mean_of(rows[i], "kld"))
                for i in grid]
    one_or_three = {}
    for name, i, own in zip(profile.PRESETS, steps, alone):
        bits = [sum(reference.run(Draft(layout, draft.groups, transforms, draft.coefficients,
                                        [t]), x, i).bits for x in cleans)
                for t in (draft.tables[0], own)]
        one_or_three[name] = bits[0] / bits[1] - 1
    report = {"steps": dict(zip(profile.PRESETS, steps)), "kappa": kappa,
              "rounding_floor": float(floors.sum()), "one_table_set_costs": one_or_three,
              "measured": {str(i): rows[i] for i in grid}}
    p = profile.Profile(layout, draft.groups, transforms, draft.coefficients, draft.tables, steps,
                        kappa, certificates.astype(np.float32), [0, 0, 0],
                        np.asarray(step_map, np.float32), meta.pop("l_scale_log2"), meta)
    return p, report


def file_sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
