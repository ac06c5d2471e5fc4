"""python3 -m tools.calibrate: see --help."""

import argparse
import hashlib
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import torch

from tools.calibrate import (calibrate, capture, fit, guardrails, layout as layout_lib, profile,
                             text)
from tools.models import fetch, tokenizer


def parse(argv):
    p = argparse.ArgumentParser(
        prog="python3 -m tools.calibrate", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Calibrates a model for the fklt codec and writes its profile.",
        epilog="Give several kinds of text (wiki, book, code, tool): tools.calibrate.fetch_text "
               "gets some. What is captured is kept in --work (a few hundred MB a passage of "
               "2,048 tokens): an interrupted run goes on there.")
    p.add_argument("model", help="a name that tools.models knows, or a GGUF file")
    p.add_argument("--text", action="append", default=[], metavar="KIND=FILE", required=True)
    p.add_argument("--check", action="append", default=[], metavar="KIND=FILE",
                   help="text of other sources: nothing is fitted to it, but presets and "
                        "certificates are set so that they hold on it")
    p.add_argument("--groups", default="layer",
                   help="head, stream, layer, all or a number of layers; several with commas")
    p.add_argument("--tp", type=int, default=1, help="shards that the heads are cut into")
    p.add_argument("--passages", type=int, default=16)
    p.add_argument("--apart", type=int, default=0,
                   help="more passages, kept apart, for the step map, and as many of the "
                        "--check texts (default: a quarter)")
    p.add_argument("--tokens", type=int, default=2048, help="of a passage")
    p.add_argument("--draws", type=int, default=0,
                   help="samples of the output, a passage: a backward pass each (default: 4 on "
                        "a GPU, 2 on a CPU)")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--work", help="folder for what is captured (default on a CPU: OUT.work; "
                                  "on a GPU: in memory)")
    p.add_argument("--name", help="of the profile (default: model-groups)")
    p.add_argument("--out", required=True,
                   help="profile.safetensors; with several --groups, {groups} in it is replaced")
    p.add_argument("--report", help="also write what was measured here, as JSON; {groups} as "
                                    "in --out")
    p.add_argument("--guardrails", metavar="FILE",
                   help="also write a profile of kakeya-1.3-ppl, from the same passages: second "
                        "moments of queries and centroid tables (tools/calibrate/guardrails.py)")
    p.add_argument("--kakeya", help="the kakeya command, which --guardrails needs")
    return p.parse_args(argv)


def commit():
    """Of this source; $KVCASK_COMMIT where there is no repository around it."""
    if os.environ.get("KVCASK_COMMIT"):
        return os.environ["KVCASK_COMMIT"]
    try:
        return subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True,
                              text=True, check=True,
                              cwd=pathlib.Path(__file__).parent).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def title(name):
    """How a known model calls itself in profiles and tables; None for files."""
    known = fetch.KNOWN_MODELS.get(name)
    return known.title if known else None


def load(path, args):
    """(model, its tokenizer's encode)."""
    model = capture.RecomputingModel.from_gguf(path, device=args.device, name=title(args.model))
    model.recompute = model.device.type == "cpu" and args.tokens > 4096  # memory
    return model, tokenizer.Tokenizer.from_gguf(path).encode


def passages_of(args, kinds, checks, encode):
    """(to fit, kept apart, to check): lists of text.Passage."""
    apart_count = args.apart or max(len(kinds), args.passages // 4)
    # one cut for both: passages never overlap; every kind gives to both in turn
    every = text.cut(kinds, encode, args.passages + apart_count, args.tokens, args.seed)
    stride = max(2, (args.passages + apart_count) // apart_count)
    apart, passages, seen = [], [], {name: 0 for name in kinds}
    for p in every:
        seen[p.kind] += 1
        take = seen[p.kind] % stride == 0 and len(apart) < apart_count
        (apart if take else passages).append(p)
    while len(apart) < apart_count:
        apart.append(passages.pop())
    check = text.cut(checks, encode, apart_count, args.tokens, args.seed) if checks else []
    return passages, apart, check


def plan_of(args, sha, passages):
    """What captures depend on: a work folder of another plan is not gone on with."""
    ids = hashlib.sha256(b"".join(p.ids.tobytes() for p in passages)).hexdigest()
    return {"model": sha, "ids": ids, "passages": len(passages), "tokens": args.tokens,
            "draws": args.draws, "seed": args.seed, "capture": capture.VERSION}


def summary(report, check):
    """Lines about a finished profile, for people."""
    rows = {int(i): r for i, r in report["measured"].items()}
    kinds = "".join(f", {k} {v:.2f}" for k, v in report["transfer_by_kind"].items())
    yield (f"  steps {report['steps']}, kappa {', '.join(f'{k:.2f}' for k in report['kappa'])}, "
           f"transfer {report['transfer']:.2f}{kinds or ' (assumed)'}")
    for preset, i in report["steps"].items():
        yield f"  {preset}: " + "; ".join(
            f"{s} {16 / calibrate.at_step(rows, i, 'bits', s):.1f}x, KLD "
            f"{calibrate.at_step(rows, i, 'kld', s):.4f}" for s in ["apart"] + ["check"] * check)


def run(args):
    partitions = args.groups.split(",")
    if len(partitions) > 1 and "{groups}" not in args.out:
        raise layout_lib.LayoutError("several --groups need {groups} in --out")
    if args.guardrails and not args.kakeya:
        raise layout_lib.LayoutError("--guardrails needs --kakeya")
    path = fetch.resolve(args.model)
    kinds = text.read_kinds(args.text)
    checks = text.read_kinds(args.check) if args.check else {}
    device = torch.device(args.device)
    args.draws = args.draws or (4 if device.type == "cuda" else 2)
    model, encode = load(path, args)
    layout = capture.model_layout(model.config)
    groups = {p: layout.partition(p, args.tp) for p in partitions}
    passages, apart, check = passages_of(args, kinds, checks, encode)
    sha = calibrate.file_sha256(path)
    work = args.work or (None if device.type == "cuda" else f"{args.out}.work")
    store = calibrate.Store(work, plan_of(args, sha, passages), device)
    nll = calibrate.capture_all(model, layout, passages, args.draws, args.seed, store)
    if args.guardrails:
        guardrails.calibrate(model, passages, args.kakeya, args.guardrails,
                             {"preset": "kakeya-1.3-ppl"},
                             " ".join(["python3 -m tools.calibrate"] + sys.argv[1:]))
    moments, metric = calibrate.accumulate(layout, store, len(passages), list(groups.values()),
                                           device)
    factor = fit.cholesky(metric.matrix(), layout)
    scale = fit.l_scale_log2(factor)
    tried = calibrate.trials(model, layout, apart, check)
    about = {
        "model": f"{model.config.name} (GGUF sha256 {sha[:16]})",
        "geometry": profile.geometry_json(model.config),
        "fklt.tp": args.tp, "fklt.weights_sha256": sha,
        "fklt.calibrated_on": json.dumps({
            "passages": len(passages), "apart": len(apart), "tokens": args.tokens,
            "draws": args.draws, "kinds": list(kinds), "check": list(checks),
            "perplexity": round(float(np.exp(nll)), 2)}),
        "fklt.seed": args.seed, "fklt.commit": commit(),
        "fklt.command": " ".join(["python3 -m tools.calibrate"] + sys.argv[1:]),
        "l_scale_log2": scale,
    }
    for name, part in groups.items():
        print(f"== groups: {name} ({len(part)} of up to {max(g.size for g in part)} elements)",
              file=sys.stderr)
        transforms = calibrate.fit_transforms(layout, part, moments, factor, scale)
        coefficients = calibrate.fit_sensitivity(part, transforms, factor, store, len(passages))
        draft = calibrate.Draft(layout, part, transforms, coefficients, [])
        p, report = calibrate.finish(
            model, draft, store, len(passages), tried,
            {"name": args.name or f"{pathlib.Path(path).stem}-{name}", "fklt.groups": name, **about})
        out = args.out.replace("{groups}", name)
        profile.write(out, p)
        if args.report:
            with open(args.report.replace("{groups}", name), "w", encoding="utf-8") as f:
                json.dump({**p.metadata, "report": report}, f, indent=1)
        print(out, *summary(report, bool(check)), sep="\n", flush=True)


def main():
    args = parse(None)
    try:
        run(args)
    except (fetch.FetchError, text.TextError, layout_lib.LayoutError, fit.FitError,
            profile.ProfileError, guardrails.GuardrailError, FloatingPointError) as e:
        sys.exit(f"calibrate: {e}")


if __name__ == "__main__":
    main()
