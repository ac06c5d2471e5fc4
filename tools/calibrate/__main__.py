"""python3 -m tools.calibrate: see --help."""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import torch

from tools.calibrate import calibrate, capture, fit, layout as layout_lib, profile, text
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
    p.add_argument("--groups", default="layer",
                   help="head, stream, layer, all or a number of layers; several with commas")
    p.add_argument("--tp", type=int, default=1, help="shards that the heads are cut into")
    p.add_argument("--passages", type=int, default=16)
    p.add_argument("--apart", type=int, default=0,
                   help="more passages, kept apart, for the step map (default: a quarter)")
    p.add_argument("--tokens", type=int, default=2048, help="of a passage")
    p.add_argument("--draws", type=int, default=0,
                   help="samples of the output, a passage: a backward pass each (default: 2 on "
                        "a GPU, 1 on a CPU)")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--work", help="folder for what is captured (default on a CPU: OUT.work; "
                                  "on a GPU: in memory)")
    p.add_argument("--name", help="of the profile (default: model-groups)")
    p.add_argument("--out", required=True,
                   help="profile.safetensors; with several --groups, {groups} in it is replaced")
    p.add_argument("--report", help="also write what was measured here, as JSON; {groups} as "
                                    "in --out")
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


def run(args):
    partitions = args.groups.split(",")
    if len(partitions) > 1 and "{groups}" not in args.out:
        raise layout_lib.LayoutError("several --groups need {groups} in --out")
    path = fetch.resolve(args.model)
    device = torch.device(args.device)
    args.draws = args.draws or (2 if device.type == "cuda" else 1)
    model = capture.RecomputingModel.from_gguf(path, device=device, name=title(args.model))
    model.recompute = device.type == "cpu"
    layout = capture.model_layout(model.config)
    groups = {p: layout.partition(p, args.tp) for p in partitions}
    encode = tokenizer.Tokenizer.from_gguf(path).encode
    kinds = text.read_kinds(args.text)
    apart_count = args.apart or max(len(kinds), args.passages // 4)
    # one cut for both: passages never overlap; every kind gives to both in turn
    every = text.cut(kinds, encode, args.passages + apart_count, args.tokens, args.seed)
    names = list(kinds)
    stride = max(2, (args.passages + apart_count) // apart_count)
    apart, passages, seen = [], [], {n: 0 for n in names}
    for p in every:
        seen[p.kind] += 1
        take = seen[p.kind] % stride == 0 and len(apart) < apart_count
        (apart if take else passages).append(p)
    while len(apart) < apart_count:
        apart.append(passages.pop())
    sha = calibrate.file_sha256(path)
    plan = {"model": sha, "text": [(p.kind, p.begin, len(p.ids)) for p in passages],
            "draws": args.draws, "seed": args.seed, "groups": "any"}
    work = args.work or (None if device.type == "cuda" else f"{args.out}.work")
    store = calibrate.Store(work, json.loads(json.dumps(plan)), device)
    nll = calibrate.capture_all(model, layout, passages, args.draws, args.seed, store)
    moments, metric = calibrate.accumulate(layout, store, len(passages), list(groups.values()),
                                           device)
    factor = fit.cholesky(metric.matrix(), layout)
    scale = fit.l_scale_log2(factor)
    for name, part in groups.items():
        print(f"== groups: {name} ({len(part)} of up to {max(g.size for g in part)} elements)",
              file=sys.stderr)
        transforms = calibrate.fit_transforms(layout, part, moments, factor, scale)
        coefficients = calibrate.fit_sensitivity(part, transforms, factor, store, len(passages))
        draft = calibrate.Draft(layout, part, transforms, coefficients, [])
        about = {
            "name": args.name or f"{pathlib.Path(path).stem}-{name}",
            "model": f"{model.config.name} (GGUF sha256 {sha[:16]})",
            "geometry": profile.geometry_json(model.config),
            "fklt.groups": name, "fklt.tp": args.tp,
            "fklt.weights_sha256": sha,
            "fklt.calibrated_on": json.dumps({
                "passages": len(passages), "apart": len(apart), "tokens": args.tokens,
                "draws": args.draws, "kinds": names, "perplexity": round(float(
                    torch.tensor(nll).exp()), 2)}),
            "fklt.seed": args.seed, "fklt.commit": commit(),
            "fklt.command": " ".join(["python3 -m tools.calibrate"] + sys.argv[1:]),
            "l_scale_log2": scale,
        }
        p, report = calibrate.finish(model, draft, store, len(passages), apart, about)
        out = args.out.replace("{groups}", name)
        profile.write(out, p)
        if args.report:
            with open(args.report.replace("{groups}", name), "w", encoding="utf-8") as f:
                json.dump({**p.metadata, "report": report}, f, indent=1)
        print(f"{out}: steps {report['steps']}, kappa "
              f"{', '.join(f'{k:.2f}' for k in report['kappa'])}")
        for preset, i in report["steps"].items():
            rows = report["measured"].get(str(i)) or []
            if rows:
                bits = calibrate.mean_of(rows, "bits")
                print(f"  {preset}: {16 / bits:.1f}x, KLD {calibrate.mean_of(rows, 'kld'):.4f}")


def main():
    args = parse(None)
    try:
        run(args)
    except (fetch.FetchError, text.TextError, layout_lib.LayoutError, fit.FitError,
            profile.ProfileError, FloatingPointError) as e:
        sys.exit(f"calibrate: {e}")


if __name__ == "__main__":
    main()
