"""Errors of two Kakeya settings on one cache, or of one against TurboQuant's 3 bits."""

import json
import pathlib
import statistics
import subprocess
import tempfile

import numpy as np

from tools.calibrate import guardrails
from tools.models import cache as cache_files


def report(command, cache, params, block_tokens=512, residual=0):
    """The command's report on a cache file."""
    with tempfile.NamedTemporaryFile() as out:
        done = subprocess.run(
            [command, "cache", str(cache), "--params", json.dumps(params), "--block-tokens",
             str(block_tokens), "--residual", str(residual), "--report", out.name],
            capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(done.stderr.strip())
        return json.loads(pathlib.Path(out.name).read_text())


def planes(made, stream):
    return [p for p in made["planes"] if p["stream"] == stream and p["coded"]]


def hadamard(x):
    """Walsh-Hadamard transform of the last axis, a power of two, orthonormal."""
    n, shape = x.shape[-1], x.shape
    h = 1
    while h < n:
        x = x.reshape(*shape[:-1], n // (2 * h), 2, h)
        x = np.concatenate([x[..., :1, :] + x[..., 1:, :], x[..., :1, :] - x[..., 1:, :]], -2)
        h *= 2
    return x.reshape(shape) / n ** .5


def turbo_mse(x, bits=3):
    """Mean squared error of TurboQuant on rows x [..., D]: norm, random signs, rotation, the
    normal distribution's levels. bits * D + 16 bits a row."""
    levels = guardrails.gaussian_levels(bits)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], x.shape[-1])
    norm = np.linalg.norm(x, axis=-1, keepdims=True).astype(np.float16).astype(np.float64)
    scale = norm / x.shape[-1] ** .5
    z = hadamard(x * signs) / np.maximum(scale, 1e-30)
    nearest = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, z)]
    return float((((nearest - z) * scale) ** 2).mean())


def against_turbo(command, cache, params, bits=3):
    """Per stream: [turbo's MSE / Kakeya's], one for each layer, keys as engines hold them."""
    stored = cache_files.read(cache)
    made = report(command, cache, params)
    out = {}
    for i, stream in enumerate("kv"):
        out[stream] = [
            turbo_mse(layer[i].double().numpy(), bits) / p["decoded"]["mse"]
            for layer, p in zip(stored.layers, planes(made, stream))]
    return out, made["ratio"]


def rows(command, cache):
    """Lines that compare settings in pairs; b over a."""
    base = {"preset": "kakeya-1.3", "k": {"metric": "mse"}}
    exact = {"pca": "exact", "rank_factor": 0}
    pairs = {
        "un-rotated over rotated keys": ({"unrotate_keys": False}, {}, "k"),
        "randomized at half rank over exact": ({"k": {"metric": "mse", **exact}, "v": exact}, {},
                                               "kv"),
        "per-head over pooled rows": ({}, {"rows": "per_head"}, "kv"),
    }
    lines = []
    for name, (a, b, streams) in pairs.items():
        first, second = (report(command, cache, {**base, **change}) for change in (a, b))
        for stream in streams:
            x, y = planes(first, stream), planes(second, stream)
            mse = statistics.mean(q["decoded"]["mse"] / p["decoded"]["mse"]
                                  for p, q in zip(x, y))
            size = sum(q["section_bytes"] for q in y) / sum(p["section_bytes"] for p in x)
            l2 = [statistics.mean(p["decoded"]["relative_l2"] for p in z) for z in (x, y)]
            lines.append(f"{name}, {stream.upper()}: MSE {mse:.2f}, bytes {size:.2f}, relative "
                         f"L2 {l2[0]:.4f} -> {l2[1]:.4f}, whole cache {first['ratio']:.2f}x -> "
                         f"{second['ratio']:.2f}x")
    for name, params in (("v1.0", {"preset": "kakeya-1.0"}), ("v1.3", base)):
        ratios, ratio = against_turbo(command, cache, params)
        for stream, r in ratios.items():
            lines.append(f"MSE of TurboQuant 3 bits over {name}'s ({ratio:.2f}x), "
                         f"{stream.upper()}: median {statistics.median(r):.2f}, {min(r):.2f} to "
                         f"{max(r):.2f}; first layer {r[0]:.2f}")
    return lines
