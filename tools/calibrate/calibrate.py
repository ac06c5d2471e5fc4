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

# KLD of the presets, nats a token: what is promised (.003, .006, .0105), less a twentieth for
# what a few dozen passages leave uncertain.
TARGETS = (0.00285, 0.0057, 0.01)
# Text of other sources than the calibration's loses more than its own kinds of text do at the
# same step. Steps are chosen, and kappa is fitted, so that presets and certificates hold
# there: by this factor, measured on --check texts; where there are none, this is assumed.
ASSUMED_TRANSFER = 1.4
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


# Where passages are cut, in turn: what is before stands for the stored cache, what is after for
# the text that goes on from it.
CUTS = (0.75, 0.5, 0.75, 0.875)


def capture_all(model, layout, passages, draws, seed, store):
    """Captures what the store does not hold yet; returns the mean nll."""
    progress, nll = Progress("capture", len(passages)), []
    for i, p in enumerate(passages):
        if not store.has(i):
            # a generator of its own: the same draws whether or not the run was interrupted
            generator = torch.Generator(model.device).manual_seed(seed * 1000003 + i)
            with protocol.tf32():
                # the kinds come in turn too: step the cut each time round
                cut = int(len(p.ids) * CUTS[(i // len({q.kind for q in passages})) % len(CUTS)])
                store.put(i, capture.capture_prefix(model, layout, p.ids, draws, generator, cut))
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
    rounding: float = reference.ROUNDING


def fit_transforms(layout, groups, moments, factor, scale):
    progress, out = Progress("transforms", len(groups)), []
    mean = moments.mean()
    for i, g in enumerate(groups):
        index = torch.as_tensor(g.index, device=mean.device)
        out.append(fit.transform(mean[index], moments.covariance(g.index),
                                 factor[list(g.sub_vectors)], scale))
        progress.at(i + 1)
    return out


def fit_sensitivity(groups, transforms, factor, store, count, budget=2 << 30):
    """The predictor's coefficients of every group. Every passage is read once for as many
    groups as `budget` bytes of features allow."""
    progress, out = Progress("sensitivity", len(groups)), []
    tokens = count * store.get(0).x.shape[0]
    per = max(1, int(budget // (tokens * 2 * sensitivity.FEATURES * 4)))
    for begin in range(0, len(groups), per):
        chunk = list(zip(groups, transforms))[begin:begin + per]
        f, s = [[] for _ in chunk], [[] for _ in chunk]
        for i in range(count):
            c = store.get(i)
            end = c.g.shape[1]  # the tokens whose gradients are known
            for n, (g, t) in enumerate(chunk):
                m = min(sensitivity.FEATURES, g.size)
                index = torch.as_tensor(g.index, device=c.x.device)
                y = t.forward(c.x[fit.SINKS:end, index], m)
                f[n].append(sensitivity.features(y, t.sigma, m))
                s[n].append(sensitivity.sample(c.g[:, fit.SINKS:, index],
                                               factor[list(g.sub_vectors)]))
        for n in range(len(chunk)):
            out.append(sensitivity.fit(torch.cat(f[n]), torch.cat(s[n])))
            f[n] = s[n] = None
            progress.at(len(out))
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


@dataclasses.dataclass
class Trial:
    """A passage to measure on. source: "apart" (of the calibration's texts) or "check"."""

    source: str
    kind: str
    clean: protocol.Clean


def trials(model, layout, apart, check):
    """Runs the passages clean, once for all partitions and steps."""
    progress, out = Progress("clean runs", len(apart) + len(check)), []
    for source, passages in (("apart", apart), ("check", check)):
        for p in passages:
            out.append(Trial(source, p.kind, protocol.clean_run(model, layout, p.ids)))
            progress.at(len(out))
    return out


def measure(model, draft, tried, steps, label):
    """Prefix protocol: {step: a row (dict) a trial}."""
    progress = Progress(label, len(tried))
    rows = {i: [] for i in steps}
    costs = draft.tables[0].cost(model.device)
    for n, t in enumerate(tried):
        for i in steps:
            r = reference.run(draft, t.clean.x, i, cost=costs)
            s = protocol.score(model, draft.layout, t.clean, r.x).summary()
            rows[i].append({"source": t.source, "kind": t.kind, "predicted": r.predicted,
                            "active": r.active, "bits": r.bits / t.clean.x.numel(),
                            "framing_bits": r.framing_bits / t.clean.x.numel(), **s})
        progress.at(n + 1)
    return rows


def mean_of(rows, key):
    return float(np.mean([r[key] for r in rows]))


def of_source(rows, source):
    """The rows of one source; reports before there were any hold "apart" only."""
    return [r for r in rows if r.get("source", "apart") == source]


def transfer_of(rows, targets=TARGETS):
    """(factor, {kind: factor}): how much more the check passages lose than those kept apart
    at the same step, where the presets lie; at least 1. The kinds' factors are for people."""
    near, by_kind = [], {}
    for i, each in rows.items():
        apart, check = (of_source(each, s) for s in ("apart", "check"))
        if not check:
            return ASSUMED_TRANSFER, {}
        loss = mean_of(apart, "kld")
        if targets[0] / 3 < loss < 2 * targets[2]:
            near.append(mean_of(check, "kld") / loss)
            for kind in {r["kind"] for r in check}:
                by_kind.setdefault(kind, []).append(
                    mean_of([r for r in check if r["kind"] == kind], "kld") / loss)
    if not near:
        return ASSUMED_TRANSFER, {}
    mean = lambda v: float(np.exp(np.mean(np.log(np.maximum(v, 1e-6)))))
    return max(1.0, mean(near)), {k: mean(v) for k, v in sorted(by_kind.items())}


def at_step(rows, step, key, source="apart"):
    """The mean of `key` at any exponent: interpolated between measured ones, in logarithms."""
    grid = sorted(rows)
    logs = np.log([max(mean_of(of_source(rows[i], source), key), 1e-12) for i in grid])
    if key == "kld":
        logs = np.maximum.accumulate(logs)  # more step, more loss: noise aside
    return float(np.exp(np.interp(step, grid, logs)))


def choose_steps(rows, targets=TARGETS):
    """The coarsest exponent whose expected KLD on foreign text is within each target."""
    grid = sorted(rows)
    factor = transfer_of(rows, targets)[0]
    out = []
    for t in targets:
        inside = [i for i in range(grid[0], grid[-1] + 1)
                  if factor * at_step(rows, i, "kld") <= t]
        out.append(max(inside) if inside else grid[0])
    return out


def fit_kappa(rows, steps, floor, targets=TARGETS):
    """Certificate factors at `steps`: what foreign text loses, per sum of 1/2 w e^2 there."""
    factor = transfer_of(rows, targets)[0]
    source = "check" if of_source(rows[min(rows)], "check") else "apart"
    out = []
    for i in steps:
        loss = factor * at_step(rows, i, "kld")
        out.append(max(loss - floor, 0.1 * loss) / at_step(rows, i, "predicted", source))
    return out


def make_step_map(rows, targets=TARGETS):
    """float32 [n, 3] for the profile: exponent, bits an element, KLD expected on foreign text."""
    factor = transfer_of(rows, targets)[0]
    return np.asarray([(i, at_step(rows, i, "bits"), factor * at_step(rows, i, "kld"))
                       for i in sorted(rows)], np.float32)


def tile_predictions(draft, x, step):
    """Predicted loss (kappa 1) of every tile of 128 tokens: float64 [groups, tiles]."""
    out = []
    centroids = torch.as_tensor(draft.tables[0].centroids, device=x.device)
    for group, t, c in zip(draft.groups, draft.transforms, draft.coefficients):
        index = torch.as_tensor(group.index, device=x.device)
        coded = reference.quantise(t, c, x[fit.SINKS:, index], step, draft.rounding)
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


def finish(model, draft, store, count, tried, meta):
    """Tables, step map, presets, kappa and certificates: a whole profile and a report.

    tried: trials(); those kept apart and those of other sources.
    """
    device = model.device
    transforms = draft.transforms
    draft.tables = [plain_tables(device)]
    lo, hi = water_level(transforms, TARGETS[0]), water_level(transforms, TARGETS[2])
    # first tables: at the expected presets, from a few passages
    first = tables.Counts(device)
    for i in (lo, (lo + hi) // 2, hi):
        first += count_symbols(draft, store, count, i, min(count, 4))
    draft.tables = [tables.fit(first)]
    rows = measure(model, draft, tried, list(range(lo - 12, hi + 13, 6)), "step map")
    for _ in range(4):  # the targets must lie within what is measured
        more = [i for i, outside in (
            (min(rows) - 12, transfer_of(rows)[0] * at_step(rows, min(rows), "kld") > TARGETS[0]),
            (max(rows) + 6, transfer_of(rows)[0] * at_step(rows, max(rows), "kld") < TARGETS[2]))
            if outside]
        if not more:
            break
        rows.update(measure(model, draft, tried, more, "step map, wider"))
    steps = choose_steps(rows)
    # final tables: at the presets, from more; all presets together and each alone
    each = [count_symbols(draft, store, count, i, TABLE_PASSAGES) for i in steps]
    pooled = tables.Counts(device)
    for counts in each:
        pooled += counts
    draft.tables = [tables.fit(pooled)]
    alone = [tables.fit(c) for c in each]
    rows.update(measure(model, draft, tried, sorted(set(steps)), "step map, final"))
    steps = choose_steps(rows)  # the presets' own points are measured now
    apart = [t.clean.x for t in tried if t.source == "apart"]
    floors = sum(rounding_floor(model, draft, x, steps[0]) for x in apart) / len(apart)
    kappa = fit_kappa(rows, steps, float(floors.sum()))
    worst = np.zeros((len(draft.groups), 3))
    for t in tried:
        for j, i in enumerate(steps):
            worst[:, j] = np.maximum(worst[:, j], tile_predictions(draft, t.clean.x, i)
                                     .amax(1).cpu().numpy())
    certificates = np.concatenate(
        [floors[:, None], TILE_MARGIN * worst * np.asarray(kappa) + floors[:, None]], 1)
    one_or_three = {}
    for name, i, own in zip(profile.PRESETS, steps, alone):
        bits = [sum(reference.run(dataclasses.replace(draft, tables=[t]), x, i).bits
                    for x in apart) for t in (draft.tables[0], own)]
        one_or_three[name] = bits[0] / bits[1] - 1
    factor, by_kind = transfer_of(rows)
    report = {"steps": dict(zip(profile.PRESETS, steps)), "kappa": kappa, "targets": TARGETS,
              "transfer": factor, "transfer_by_kind": by_kind,
              "rounding_floor": float(floors.sum()), "one_table_set_costs": one_or_three,
              "measured": {str(i): rows[i] for i in sorted(rows)}}
    meta = {**meta, "fklt.transfer": f"{factor:.3f}" + ("" if by_kind else " (assumed)"),
            "fklt.targets": ",".join(f"{t:g}" for t in TARGETS)}
    p = profile.Profile(draft.layout, draft.groups, transforms, draft.coefficients, draft.tables,
                        steps, kappa, certificates.astype(np.float32), [0, 0, 0],
                        make_step_map(rows), meta.pop("l_scale_log2"), meta, draft.rounding)
    return p, report


def file_sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
