"""The settings that docs/kakeya.md compares: each guardrail switched alone on one base."""

import copy
import json
import pathlib
import subprocess
import tempfile

from bench.quality import roundtrip
from tools.models import cache as cache_files

# K 3 bits, V 2 bits, half rank, one head's rows a block, keys un-rotated: v1.3-PPL without a
# guardrail. Each row of SETTINGS changes what it names and nothing else.
BASE = {"preset": "kakeya-1.3", "rows": "per_head",
        "k": {"bits": 3, "metric": "mse"}, "v": {"bits": 2, "share_basis": True}}
FULL = {"whiten_keys": True,
        "k": {"bits": 3, "metric": "mse", "calibrated_centroids": True, "outlier_threshold": 2},
        "v": {"bits": 2, "share_basis": True, "calibrated_centroids": True}}
FIDELITY = {"bits": 4, "pca": "exact", "rank_factor": 0, "variance_ratio": 1,
            "share_basis": False}


def merge(base, change):
    """base with change's members in it, objects member by member."""
    out = copy.deepcopy(base)
    for key, value in change.items():
        out[key] = merge(out.get(key, {}), value) if isinstance(value, dict) else value
    return out


BOUNDARY = [0, 1, -2, -1]  # the first two layers and the last two


def settings():
    """Name -> parameters (codec/kakeya/FORMAT.md)."""
    alone = {
        "bare": {},
        "whitening": {"whiten_keys": True},
        "K of half rank": {"k": {"variance_ratio": 1}},
        "whitening, K of half rank": {"whiten_keys": True, "k": {"variance_ratio": 1}},
        "calibrated centroids": {"k": {"calibrated_centroids": True},
                                 "v": {"calibrated_centroids": True}},
        "boundary layers": {"raw_layers": BOUNDARY},
        "outliers K": {"k": {"outlier_threshold": 2}},
        "outliers K and V": {"k": {"outlier_threshold": 2}, "v": {"outlier_threshold": 2}},
        "norm correction": {"k": {"norm_correction": True}, "v": {"norm_correction": True}},
        "inner product K": {"k": {"metric": "inner_product"}},
        "sinks 4": {"sink_tokens": 4},
        "pooled rows": {"rows": "pooled"},
        "rotated keys": {"unrotate_keys": False},
        "K 4 bits in hot layers": {"hot_layers": list(range(4)), "hot_bits": 4},
        "clusters 64": {"k": {"clusters": 64}},
        "attention-weighted PCA": {},
        "whitening, centroids, outliers": FULL,
        "v1.3-PPL": merge(FULL, {"raw_layers": BOUNDARY}),
        "v1.3-PPL, sinks 4": merge(FULL, {"raw_layers": BOUNDARY, "sink_tokens": 4}),
        "v1.3-PPL, K of half rank": merge(FULL, {"raw_layers": BOUNDARY,
                                                 "k": {"variance_ratio": 1}}),
        "v1.3-PPL, K of half rank, sinks 4": merge(
            FULL, {"raw_layers": BOUNDARY, "sink_tokens": 4, "k": {"variance_ratio": 1}}),
        "score metric, whitening": {"whiten_keys": True},
        "score metric, whitening, K of half rank": {"whiten_keys": True,
                                                    "k": {"variance_ratio": 1}},
        "score metric, v1.3-PPL, K of half rank": merge(
            FULL, {"raw_layers": BOUNDARY, "k": {"variance_ratio": 1}}),
        "score metric, v1.3-PPL, K of half rank, sinks 4": merge(
            FULL, {"raw_layers": BOUNDARY, "sink_tokens": 4, "k": {"variance_ratio": 1}}),
        "other tables, calibrated centroids": {"k": {"calibrated_centroids": True},
                                               "v": {"calibrated_centroids": True}},
        "other tables, whitening": {"whiten_keys": True},
        "other tables, v1.3-PPL": merge(FULL, {"raw_layers": BOUNDARY}),
    }
    out = {"v1.0": {"preset": "kakeya-1.0"}, "v1.2": {"preset": "kakeya-1.2"},
           "v1.3": {"preset": "kakeya-1.3"},
           "v1.2, max fidelity": {"preset": "kakeya-1.2", "k": FIDELITY, "v": FIDELITY}}
    out.update({name: merge(BASE, change) for name, change in alone.items()})
    return out


def needs_profile(params):
    """Whether parameters ask for what only a profile has."""
    return bool(params.get("whiten_keys") or params.get("preset") == "kakeya-1.3-ppl" or any(
        params.get(s, {}).get("calibrated_centroids") for s in "kv"))


class Kakeya:
    """A Roundtrip through the kakeya command. reports: its report of each call, for audits."""

    lossless = False
    layer_local = False

    def __init__(self, name, command, params, profile="", block_tokens=512, residual=0,
                 stages=False, weights=None):
        """weights: a function (layers, token_ids) -> per layer the tokens' weights, or None."""
        self.name, self.reports = name, []
        self._command, self._params, self._profile = command, params, profile
        self._block, self._residual = block_tokens, residual
        self._stages, self._weights = stages, weights

    def __call__(self, config, layers, token_ids):
        with tempfile.TemporaryDirectory(prefix="kvcask-kakeya-") as tmp:
            tmp = pathlib.Path(tmp)
            cache_files.write(tmp / "in", config, layers, token_ids)
            options = ["--stages"] * self._stages
            if self._profile:
                options += ["--profile", str(self._profile)]
            if self._weights is not None:
                self._write_weights(tmp / "weights", self._weights(layers, token_ids))
                options += ["--weights", str(tmp / "weights")]
            done = subprocess.run(
                [self._command, "cache", str(tmp / "in"), "--out", str(tmp / "out"), "--params",
                 json.dumps(self._params), "--block-tokens", str(self._block), "--residual",
                 str(self._residual), "--report", str(tmp / "report"), *options],
                capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise roundtrip.RoundtripError(f"{self._command}: {done.stderr.strip()}")
            report = json.loads((tmp / "report").read_text())
            self.reports.append(report)
            return roundtrip.Decoded(cache_files.read(tmp / "out").layers, report["raw_bytes"],
                                     report["stored_bytes"])

    @staticmethod
    def _write_weights(path, weights):
        import numpy as np
        import safetensors.numpy
        safetensors.numpy.save_file({f"w.{i:02d}": np.asarray(w, np.float32)
                                     for i, w in enumerate(weights)}, str(path))
