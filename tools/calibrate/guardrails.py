"""Calibration of kakeya-1.3-ppl's guardrails: second moments of queries, and centroid tables.

  python3 -m tools.calibrate.guardrails smollm2-135m --text wiki=F --text book=F ... \\
      --kakeya .bazel/bin/codec/kakeya/kakeya --out profile.safetensors

Writes a profile (codec/kakeya/FORMAT.md), and beside it OUT.json: condition numbers for each
layer and head, and what the tables gain over the normal distribution's. The text must be other
text than what is measured on.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import safetensors
import safetensors.numpy
import torch

from tools.calibrate import text as text_lib
from tools.models import cache as cache_lib
from tools.models import fetch, forward, tokenizer

RIDGE = 1e-3  # of the mean diagonal: published as "small"


class GuardrailError(RuntimeError):
    """A step failed; the message says which and why."""


def second_moments(model, passages, on_cache):
    """sum q q^T over tokens and the query heads of each KV head, before RoPE, and the number
    summed: float64 [layers][kv_heads, D, D], int. on_cache(passage, cache) sees each clean
    cache."""
    c = model.config
    sums = [torch.zeros(c.kv_heads, c.head_dim, c.head_dim, dtype=torch.float64)
            for _ in c.layers]
    count = 0
    for passage in passages:
        def hook(layer, stream, x, positions):
            if stream == "q_pre":
                grouped = x[0].double().reshape(c.kv_heads, -1, c.head_dim).cpu()
                sums[layer] += grouped.transpose(1, 2) @ grouped
        with torch.no_grad():
            run = model.run(torch.as_tensor(passage.ids)[None], kv_hook=hook, keep_cache=True)
        count += len(passage.ids) * c.q_heads // c.kv_heads
        on_cache(passage, run.cache)
    return sums, count


def spread(moment, inv_freq, reach):
    """E[q q^T] over relative positions: float64 [heads, D, D] of queries before RoPE -> the mean
    of R(d) moment R(d)^T over the distances d of all pairs of a sequence of `reach` tokens.

    A score of a query m and a key n is <R(m - n) q, k> of the vectors before RoPE, so this, and
    not the moment itself, is the metric of squared score error on un-rotated keys, as long as
    queries are alike everywhere. R is rotate-half's, as in tools.models.
    """
    distance = torch.arange(reach, dtype=torch.float64)
    weight = (reach - distance) / (reach - distance).sum()
    angle = distance[:, None] * inv_freq.double()[None]
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]  # [reach, 1, dims / 2]

    def turn(x):  # [reach, D, D], rows
        half = cos.shape[-1]
        a, b = x[..., :half], x[..., half:2 * half]
        return torch.cat([a * cos - b * sin, b * cos + a * sin, x[..., 2 * half:]], -1)

    out = torch.zeros_like(moment)
    for h, m in enumerate(moment):
        turned = turn(turn(m.expand(reach, -1, -1)).transpose(1, 2))
        out[h] = torch.einsum("r,rij->ij", weight, turned)
    return (out + out.transpose(1, 2)) / 2


def factor(moment, ridge=RIDGE, max_condition=0.0):
    """Sigma and its Cholesky factor, float64 [heads, D, D]: ridge added in units of the mean
    diagonal, then scaled to a mean diagonal of 1, so that factored keys keep their size.
    max_condition: as much more ridge as that takes (Tikhonov); 0: none."""
    dim = moment.shape[-1]
    eye = torch.eye(dim, dtype=torch.float64)
    mean = moment.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    sigma = moment / mean + ridge * eye
    if max_condition:
        values = torch.linalg.eigvalsh(sigma)
        low, high = values[:, 0], values[:, -1]
        more = ((high - max_condition * low) / (max_condition - 1)).clamp(min=0)
        sigma = sigma + more[:, None, None] * eye
    sigma = sigma / sigma.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    return sigma, torch.linalg.cholesky(sigma)


def lloyd_max(histogram, edges, start, rounds=200):
    """Levels that minimise squared error over a histogram, from `start`; ascending."""
    centres = (edges[:-1] + edges[1:]) / 2
    mass = np.concatenate([[0], np.cumsum(histogram)])
    first = np.concatenate([[0], np.cumsum(histogram * centres)])
    levels = np.asarray(start, np.float64).copy()
    for _ in range(rounds):
        # a bin that a cell's border crosses counts in parts
        cuts = np.concatenate([edges[:1], (levels[:-1] + levels[1:]) / 2, edges[-1:]])
        n = np.diff(np.interp(cuts, edges, mass))
        s = np.diff(np.interp(cuts, edges, first))
        moved = np.where(n > 0, s / np.maximum(n, 1e-300), levels)
        if np.abs(moved - levels).max() < 1e-9:
            break
        levels = moved
    return levels


def squared_error(histogram, edges, levels):
    """Mean squared error of the nearest level over a histogram."""
    centres = (edges[:-1] + edges[1:]) / 2
    nearest = np.abs(centres[:, None] - np.asarray(levels)[None]).argmin(1)
    return float((histogram * (centres - np.asarray(levels)[nearest]) ** 2).sum()
                 / histogram.sum())


def gaussian_levels(bits):
    """Lloyd-Max levels of the normal distribution, by the same iteration."""
    edges = np.linspace(-8, 8, 16001)
    centres = (edges[:-1] + edges[1:]) / 2
    start = np.linspace(-1.5, 1.5, 1 << bits)
    return lloyd_max(np.exp(-centres ** 2 / 2), edges, start, 20000)


class Samples:
    """Histograms of what enters the quantiser, by stream."""

    EDGES = np.linspace(-16, 16, 64001)

    def __init__(self):
        self.histogram = {s: np.zeros(len(self.EDGES) - 1) for s in "kv"}

    def add(self, folder):
        for path in sorted(pathlib.Path(folder).glob("*.safetensors")):
            with safetensors.safe_open(str(path), framework="np") as f:
                if "quantiser_input" in f.keys():
                    x = f.get_tensor("quantiser_input")
                    self.histogram[path.name[0]] += np.histogram(
                        np.clip(x, -15.99, 15.99), self.EDGES)[0]
            path.unlink()

    def tables(self):
        """{"centroids_k_b3": float32 levels}, and mean squared errors before and after."""
        for stream, histogram in self.histogram.items():
            if not histogram.any():
                raise GuardrailError(f"no residuals of {stream}: are passages shorter than a "
                                     "block?")
        out, gains = {}, {}
        for stream, histogram in self.histogram.items():
            for bits in range(1, 5):
                normal = gaussian_levels(bits)
                levels = lloyd_max(histogram, self.EDGES, normal)
                out[f"centroids_{stream}_b{bits}"] = levels.astype(np.float32)
                before = squared_error(histogram, self.EDGES, normal)
                after = squared_error(histogram, self.EDGES, levels)
                gains[f"{stream}_b{bits}"] = {"gaussian_mse": before, "calibrated_mse": after,
                                              "gain": before / after}
        return out, gains


def write_profile(path, model, tensors, params, made):
    """A profile of kakeya-1.3-ppl; appears whole or not at all."""
    partial = f"{path}.partial"
    safetensors.numpy.save_file(
        {k: np.ascontiguousarray(v) for k, v in tensors.items()}, partial,
        {"kvcask.profile": "1", "codec": "kakeya-1.3-ppl", "name": pathlib.Path(path).stem,
         "model": model.config.name, "geometry": json.dumps(model.geometry()),
         "kakeya": json.dumps(params), "made": made})
    os.replace(partial, path)


def run_kakeya(command, cache, profile, params, folder, block_tokens):
    done = subprocess.run(
        [command, "cache", str(cache), "--profile", str(profile), "--params",
         json.dumps(params), "--block-tokens", str(block_tokens), "--stages", "--dump",
         str(folder), "--report", str(pathlib.Path(folder) / "report.json")],
        capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise GuardrailError(f"{command}: {done.stderr.strip()}")


def calibrate(model, passages, command, out, params, made, max_condition=0.0,
              block_tokens=512, metric="query"):
    """Two steps: moments from clean runs, then tables from the codec's own residuals. metric:
    query (as published: E[q q^T] before RoPE) or score (spread over relative positions)."""
    with tempfile.TemporaryDirectory(prefix="kvcask-guardrails-") as tmp:
        tmp, caches = pathlib.Path(tmp), []

        def keep(passage, cache):
            caches.append(tmp / f"{len(caches)}.safetensors")
            cache_lib.write(caches[-1], model.config, cache, passage.ids.tolist())
            print(f"passage {len(caches)} of {len(passages)}", file=sys.stderr, flush=True)

        sums, count = second_moments(model, passages, keep)
        tensors, conditions = {}, []
        for layer, moment in enumerate(sums):
            moment = moment / count
            if metric == "score":
                moment = spread(moment, model._inv_freq[layer].cpu(), len(passages[0].ids))
            sigma, chol = factor(moment, max_condition=max_condition)
            tensors[f"layer_{layer}_chol"] = chol.float().numpy()
            tensors[f"layer_{layer}_sigma"] = sigma.float().numpy()
            for head in range(len(sigma)):
                values = torch.linalg.eigvalsh(sigma[head])
                diagonal = sigma[head].diagonal()
                off = (sigma[head] - torch.diag(diagonal)).abs().max()
                condition = float(values[-1] / values[0])
                conditions.append({"layer": layer, "head": head, "condition": condition,
                                   "condition_of_factor": condition ** .5,
                                   "largest_off_diagonal_over_mean_diagonal":
                                       float(off / diagonal.mean())})
        plain = {k: dict(params.get(k, {}), calibrated_centroids=False) for k in "kv"}
        write_profile(out, model, tensors, {**params, **plain}, made)
        samples = Samples()
        (tmp / "dump").mkdir()
        for cache in caches:
            run_kakeya(command, cache, out, {**params, **plain, "raw_layers": []}, tmp / "dump",
                       block_tokens)
            samples.add(tmp / "dump")
        tables, gains = samples.tables()
        tensors.update(tables)
        write_profile(out, model, tensors, params, made)
        pathlib.Path(f"{out}.json").write_text(json.dumps(
            {"made": made, "tokens": sum(len(p.ids) for p in passages),
             "samples": {s: int(h.sum()) for s, h in samples.histogram.items()},
             "tables": gains, "moments": conditions}, indent=1) + "\n")


def main(argv=None):
    parser = argparse.ArgumentParser(prog="tools.calibrate.guardrails", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file or a known model's name")
    parser.add_argument("--text", action="append", required=True, metavar="KIND=FILE")
    parser.add_argument("--passages", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kakeya", required=True, help="the kakeya command")
    parser.add_argument("--params", default='{"preset": "kakeya-1.3-ppl"}',
                        help="JSON; of the codec, kept in the profile")
    parser.add_argument("--max-condition", type=float, default=0.0,
                        help="of a second moment, by more ridge; 0: as it is")
    parser.add_argument("--metric", choices=("query", "score"), default="query",
                        help="query: E[q q^T] before RoPE, as published; score: its mean over the "
                             "rotations between a query and the keys before it")
    parser.add_argument("--out", required=True)
    args = parser.parse_args(argv)
    path = fetch.resolve(args.model)
    model = forward.Model.from_gguf(path)
    tok = tokenizer.Tokenizer.from_gguf(path)
    passages = text_lib.cut(text_lib.read_kinds(args.text), tok.encode, args.passages,
                            args.tokens, args.seed)
    made = f"tools.calibrate.guardrails {args.model} --passages {args.passages} --tokens " \
           f"{args.tokens} --seed {args.seed} --metric {args.metric}"
    calibrate(model, passages, args.kakeya, args.out, json.loads(args.params), made,
              args.max_condition, metric=args.metric)
    return 0


if __name__ == "__main__":
    sys.exit(main())
