"""Scores profiles by the prefix protocol, with the reference encoder.

    python3 -m tools.calibrate.evaluate MODEL PROFILE... --text KIND=FILE ... --out r.json

Every passage is run clean once, then once for each profile and step. `ratio` counts ideal
code length with sinks in 10 bits an element; `framed_ratio` adds about what tiles cost
beyond it. The daemon's own counters are what counts in the end (bench/quality).
"""

import argparse
import json
import math
import sys
import time

import numpy as np
import torch

from tools.calibrate import __main__ as command
from tools.calibrate import calibrate, capture, profile as profile_lib, protocol, reference, text
from tools.calibrate import verdict
from tools.models import fetch, tokenizer


def interval(values):
    """Half the 95 % interval of a mean over passages (Student's t, tabulated coarsely)."""
    n = len(values)
    if n < 2:
        return float("nan")
    t = {2: 12.7, 3: 4.3, 4: 3.18, 8: 2.36, 16: 2.13}.get(n, 2.04 if n <= 40 else 1.98)
    return t * float(np.std(values, ddof=1)) / math.sqrt(n)


def ranks(values):
    return np.argsort(np.argsort(values)).astype(float)


def summarise(rows):
    """One line of the table from one row a passage."""
    dnll = [r["dnll"] for r in rows]
    mean = lambda key: float(np.mean([r[key] for r in rows]))
    kinds = sorted({r["kind"] for r in rows})
    of_kind = lambda k: [r for r in rows if r["kind"] == k]
    out = {
        "passages": len(rows), "bits": mean("bits"), "ratio": 16 / mean("bits"),
        "framed_ratio": 16 / (mean("bits") + mean("framing_bits")),
        "active": mean("active"), "kld": mean("kld"), "kld_ci": interval([r["kld"] for r in rows]),
        "dppl_percent": 100 * (math.exp(np.mean(dnll)) - 1),
        "dppl_ci": 100 * interval(dnll) * math.exp(np.mean(dnll)),
        "top1": 100 * mean("top1"), "kl99": mean("kl99"),
        "worst_kld": max(r["kld"] for r in rows), "predicted": mean("certificate"),
        "kld_by_kind": {k: float(np.mean([r["kld"] for r in of_kind(k)])) for k in kinds},
        "predicted_by_kind": {k: float(np.mean([r["certificate"] for r in of_kind(k)]))
                              for k in kinds},
    }
    if len(rows) > 2 and len({r["certificate"] for r in rows}) > 1:
        a, b = (ranks([r[k] for r in rows]) for k in ("kld", "certificate"))
        out["rank_correlation"] = float(np.corrcoef(a, b)[0, 1])
    return out


def evaluate(model, profiles, passages, extra_steps=(), use_classes=True):
    """{(profile name, label): rows}; profiles: {name: Profile}. extra_steps: exponents added
    to every preset's, to draw a curve."""
    progress, rows = calibrate.Progress("evaluate", len(passages)), {}
    costs = {n: p.tables[0].cost(model.device) for n, p in profiles.items()}
    for i, passage in enumerate(passages):
        layout = next(iter(profiles.values())).layout
        clean = protocol.clean_run(model, layout, passage.ids)
        same = protocol.score_cache(model, clean, clean.cache).summary()
        rows.setdefault(("identity", ""), []).append(
            {"kind": passage.kind, "bits": 16, "framing_bits": 0, "active": 1, "certificate": 0,
             **same})
        for name, p in profiles.items():
            settings = list(zip(profile_lib.PRESETS, p.steps, range(3)))
            settings += [(f"step {p.steps[1] + s}", p.steps[1] + s, 1) for s in extra_steps]
            for label, step, preset in settings:
                r = reference.run(p, clean.x, step, cost=costs[name], use_classes=use_classes)
                s = protocol.score(model, layout, clean, r.x).summary()
                certificate = (p.kappa[preset] * r.predicted + float(p.certificates[:, 0].sum()))
                rows.setdefault((name, label), []).append(
                    {"kind": passage.kind, "step": step, "bits": r.bits / clean.x.numel(),
                     "framing_bits": r.framing_bits / clean.x.numel(), "active": r.active,
                     "certificate": certificate, **s})
        progress.at(i + 1)
    return rows


def machine():
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    with open("/proc/cpuinfo", encoding="utf-8") as f:
        return next((line.split(":")[1].strip() for line in f if "model name" in line), "CPU")


def main():
    p = argparse.ArgumentParser(prog="python3 -m tools.calibrate.evaluate",
                                description=__doc__.split("\n")[0])
    p.add_argument("model")
    p.add_argument("profiles", nargs="+")
    p.add_argument("--text", action="append", default=[], metavar="KIND=FILE", required=True)
    p.add_argument("--passages", type=int, default=32)
    p.add_argument("--tokens", type=int, default=2048)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--extra-steps", default="", help="exponents relative to balanced's: 4,8")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--out", required=True)
    args = p.parse_args()
    try:
        path = fetch.resolve(args.model)
        kinds = text.read_kinds(args.text)
        encode = tokenizer.Tokenizer.from_gguf(path).encode
        passages = text.cut(kinds, encode, args.passages, args.tokens, args.seed)
        profiles = {f: profile_lib.read(f).to(args.device) for f in args.profiles}
    except (OSError, fetch.FetchError, text.TextError, profile_lib.ProfileError) as e:
        sys.exit(f"evaluate: {e}")
    model = capture.RecomputingModel.from_gguf(
        path, device=args.device, name=command.title(args.model))
    if args.tokens > model.config.context:
        sys.exit(f"evaluate: passages of {args.tokens} tokens are longer than the context of "
                 f"{model.config.name}, {model.config.context}")
    begin = time.monotonic()
    rows = evaluate(model, profiles, passages,
                    [int(s) for s in args.extra_steps.split(",") if s])
    results = []
    for (name, label), r in rows.items():
        summary = summarise(r)
        about = profiles[name].metadata if name in profiles else {}
        results.append({"profile": about.get("name", name), "groups": about.get("fklt.groups", ""),
                        "setting": label, "step": r[0].get("step"), **summary, "rows": r})
        print(f"{about.get('name', name)} {label}: {summary['ratio']:.1f}x "
              f"({summary['framed_ratio']:.1f}x framed) KLD {summary['kld']:.4f} predicted "
              f"{summary['predicted']:.4f} dPPL {summary['dppl_percent']:+.2f} +- "
              f"{summary['dppl_ci']:.2f} % top-1 {summary['top1']:.1f} %")
        if about:
            calibrated = json.loads(about.get("fklt.calibrated_on", "{}")).get("tokens")
            checks = {"quality": verdict.quality(summary), "ratio": verdict.ratio(
                model.config.name, results[-1]), "certificate": verdict.certificate(
                    summary, args.tokens == calibrated)}
            results[-1]["calibrated_length"] = args.tokens == calibrated
            for what, v in checks.items():
                if v:
                    print(f"    {what}: {v}")
            print(f"    rank correlation of predicted and measured over passages: "
                  f"{summary.get('rank_correlation', float('nan')):+.2f}", flush=True)
    with open(args.out, "w", encoding="utf-8") as f:
        json.dump({"model": model.config.name, "protocol": "prefix", "tokens": args.tokens,
                   "seed": args.seed, "kinds": list(kinds), "machine": machine(),
                   "commit": command.commit(),
                   "command": " ".join(["python3 -m tools.calibrate.evaluate"] + sys.argv[1:]),
                   "seconds": round(time.monotonic() - begin, 1), "results": results}, f)


if __name__ == "__main__":
    main()
