"""Kakeya codecs measured on a model's own caches.

  python3 -m bench.kakeya quality smollm2-135m --text wiki=F ... --kakeya PATH --profile P --out DIR
  python3 -m bench.kakeya table DIR...
  python3 -m bench.kakeya stages CACHE.safetensors --kakeya PATH [--profile P] --out FILE.md
  python3 -m bench.kakeya compare CACHE.safetensors --kakeya PATH
  python3 -m bench.kakeya scores smollm2-135m --text wiki=F ... --kakeya PATH --profile P
  python3 -m bench.kakeya hot smollm2-135m --text wiki=F ... --kakeya PATH --count 6

`quality` scores settings (codecs.py) with kvcask-eval's protocols, variants and report: K only
and V only are the variants k and v, the depth curve is the variant first. `stages` prints signal
to noise and correlation after each stage, layer by layer, K and V apart. `compare` sets pairs of
settings, and TurboQuant's 3 bits, side by side on one cache. `scores` says what decoded keys
do to attention (scores.py). `table` writes the tables of docs/kakeya.md. `hot` picks layers for
more bits: those whose keys, coded as the first --setting says, change attention most, worst
first; it prints a recipe.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

from bench.kakeya import codecs


def _parser():
    parser = argparse.ArgumentParser(prog="bench.kakeya", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    quality = commands.add_parser("quality")
    quality.add_argument("model")
    quality.add_argument("--text", action="append", required=True, metavar="KIND=FILE")
    quality.add_argument("--setting", action="append",
                         help="of codecs.py, default: all; or NAME={JSON}: changes of bare")
    quality.add_argument("--protocol", action="append", choices=("prefix", "whole"))
    quality.add_argument("--variant", action="append", help="kv, k, v, layers, first")
    quality.add_argument("--passages", type=int, default=4)
    quality.add_argument("--tokens", type=int, default=683,
                         help="a passage; 683: a prefix of 512, one block")
    quality.add_argument("--seed", type=int, default=1)
    quality.add_argument("--score-profile", default="",
                         help="of tools.calibrate.guardrails --metric score")
    quality.add_argument("--other-profile", default="", help="of other passages: row (n)")
    quality.set_defaults(run=_quality)
    stages = commands.add_parser("stages")
    stages.add_argument("cache")
    stages.add_argument("--setting", action="append")
    stages.set_defaults(run=_stages)
    compare = commands.add_parser("compare")
    compare.add_argument("cache")
    compare.add_argument("--kakeya", required=True, help="the kakeya command")
    compare.set_defaults(run=_compare)
    scored = commands.add_parser("scores")
    scored.set_defaults(run=_scores)
    hot = commands.add_parser("hot")
    hot.add_argument("--count", type=int, default=4, help="layers")
    hot.add_argument("--bits", type=int, default=4)
    hot.set_defaults(run=_hot)
    for sub in (scored, hot):
        sub.add_argument("model")
        sub.add_argument("--text", action="append", required=True, metavar="KIND=FILE")
        sub.add_argument("--setting", action="append", help="of codecs.py; default: bare")
        sub.add_argument("--passages", type=int, default=1)
        sub.add_argument("--tokens", type=int, default=512)
        sub.add_argument("--seed", type=int, default=1)
        sub.add_argument("--kakeya", required=True, help="the kakeya command")
        sub.add_argument("--profile", default="", help="of tools.calibrate.guardrails")
        sub.add_argument("--score-profile", default="")
    table = commands.add_parser("table")
    table.add_argument("folders", nargs="+", help="--out of quality")
    table.set_defaults(run=_table)
    for sub in (quality, stages):
        sub.add_argument("--kakeya", required=True, help="the kakeya command")
        sub.add_argument("--profile", default="", help="of tools.calibrate.guardrails")
        sub.add_argument("--block-tokens", type=int, default=512)
        sub.add_argument("--residual", type=int, default=0,
                         help="newest tokens never sealed (published: 256)")
        sub.add_argument("--out", required=True)
    return parser


def load(args):
    """(model, passages) that args name."""
    from tools.calibrate import text
    from tools.models import fetch, forward, tokenizer
    path = fetch.resolve(args.model)
    model, tok = forward.Model.from_gguf(path), tokenizer.Tokenizer.from_gguf(path)
    return model, text.cut(text.read_kinds(args.text), tok.encode, args.passages, args.tokens,
                           args.seed)


def make(args, model, default):
    """The Roundtrips of --setting, else of `default`; without --setting those that want a
    profile which was not named are left out."""
    from bench.kakeya import attention
    from bench.quality import roundtrip
    known, made = codecs.settings(), []
    for name in args.setting or default:
        if name == "identity":
            made.append(roundtrip.Identity())
            continue
        params = known.get(name)
        if "={" in name:
            name, _, change = name.partition("=")
            params = codecs.merge(codecs.BASE, json.loads(change))
        if params is None:
            raise ValueError(f"setting {name!r} is not one of {', '.join(known)}")
        option = {"score metric": "score_profile",
                  "other tables": "other_profile"}.get(name.partition(",")[0], "profile")
        profile = getattr(args, option, "")
        if codecs.needs_profile(params) and not profile:
            if args.setting:
                raise ValueError(f"setting {name!r} needs --{option.replace('_', '-')}")
            continue
        weights = attention.Weights(model) if name.startswith("attention") else None
        made.append(codecs.Kakeya(name, args.kakeya, params, profile,
                                  getattr(args, "block_tokens", 512),
                                  getattr(args, "residual", 0), weights=weights))
    return made


def _quality(args):
    measure(args, *load(args))


def measure(args, model, passages):
    from bench.quality import evaluate, markdown, report, results
    made = make(args, model, ["identity", *codecs.settings()])
    folder = pathlib.Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    found = results.Results(folder / "results.jsonl")
    found.start_run(args.seed, model.device)
    evaluate.evaluate(model, passages, made, args.variant or ["kv"],
                      args.protocol or ["prefix"], found, args.tokens, args.seed)
    built = report.build(found)
    report.write(built, folder)
    print(markdown.markdown(built))


def stage_rows(report):
    """Lines of a table from a report with stages: one for each layer and stream."""
    for plane in report["planes"]:
        if not plane["coded"]:
            continue
        cells = [f"{plane['layer']}", plane["stream"].upper(),
                 f"{statistics.mean(plane['ranks']):.0f}"]
        for stage in ("pca", "centres", "rotated", "coded"):
            f = plane["stages"].get(stage)
            cells.append("" if f is None else f"{f['snr']:.1f} ({f['correlation']:.3f})")
        f = plane["decoded"]
        implied = 1 / max(1e-12, 1 - f["correlation"] ** 2)
        cells += [f"{implied:.1f}", f"{plane['quantiser_variance']:.3f}",
                  f"{plane['raw_bytes'] / plane['stored_bytes']:.2f}"]
        yield "| " + " | ".join(cells) + " |"


def _stages(args):
    known = codecs.settings()
    lines = []
    for name in args.setting or ["v1.2", "v1.3", "bare"]:
        with tempfile.NamedTemporaryFile() as out:
            options = ["--profile", args.profile] if args.profile else []
            done = subprocess.run(
                [args.kakeya, "cache", args.cache, "--params", json.dumps(known[name]),
                 "--block-tokens", str(args.block_tokens), "--residual", str(args.residual),
                 "--stages", "--report", out.name, *options],
                capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(done.stderr.strip())
            report = json.loads(pathlib.Path(out.name).read_text())
        lines += [f"{report['model']}, {report['tokens']} tokens, {name}: {report['ratio']:.2f}x "
                  f"({report['coded_ratio']:.2f}x of what is coded)", "",
                  "| layer | stream | rank | pca | centres | rotated | coded | "
                  "1 / (1 - corr^2) | variance at the quantiser | ratio |",
                  "|---|---|---|---|---|---|---|---|---|---|", *stage_rows(report), ""]
    pathlib.Path(args.out).write_text("\n".join(lines))
    print("\n".join(lines))


def _captured(model, passage):
    """(cache, queries) of a passage's clean run."""
    import torch

    from bench.kakeya import scores
    with torch.no_grad():
        run = model.run(torch.as_tensor(passage.ids)[None], keep_cache=True)
    return [(k[0], v[0]) for k, v in run.cache], scores.queries(model, passage.ids)


def _scores(args):
    from bench.kakeya import scores
    model, passages = load(args)
    print("\n".join(scores.table(model, [(p, *_captured(model, p)) for p in passages],
                                 make(args, model, ["bare"]))))


def _hot(args):
    from bench.kakeya import scores
    model, passages = load(args)
    codec = make(args, model, ["bare"])[0]
    worst = scores.worst_layers(model, [(p, *_captured(model, p)) for p in passages], codec)
    for layer, kl in worst:
        print(f"layer {layer}: {kl:.4f} nats a query", file=sys.stderr)
    print(json.dumps({"hot_layers": sorted(layer for layer, _ in worst[:args.count]),
                      "hot_bits": args.bits}))


def _table(args):
    from bench.kakeya import table
    print("\n".join(table.lines(table.gather(args.folders), ["identity", *codecs.settings()])))


def _compare(args):
    from bench.kakeya import compare
    print("\n".join(compare.rows(args.kakeya, args.cache)))


def main(argv=None):
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except (ValueError, OSError, RuntimeError) as e:
        print(f"bench.kakeya {args.command}: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
