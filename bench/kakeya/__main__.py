"""Kakeya codecs measured on a model's own caches.

  python3 -m bench.kakeya quality smollm2-135m --text wiki=F ... --kakeya PATH --profile P --out DIR
  python3 -m bench.kakeya stages CACHE.safetensors --kakeya PATH [--profile P] --out FILE.md
  python3 -m bench.kakeya compare CACHE.safetensors --kakeya PATH

`quality` scores settings (codecs.py) with kvcask-eval's protocols, variants and report: K only
and V only are the variants k and v, the depth curve is the variant first. `stages` prints signal
to noise and correlation after each stage, layer by layer, K and V apart. `compare` sets pairs of
settings, and TurboQuant's 3 bits, side by side on one cache.
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
    quality.add_argument("--setting", action="append", help="of codecs.py; default: all")
    quality.add_argument("--protocol", action="append", choices=("prefix", "whole"))
    quality.add_argument("--variant", action="append", help="kv, k, v, layers, first")
    quality.add_argument("--passages", type=int, default=4)
    quality.add_argument("--tokens", type=int, default=683,
                         help="a passage; 683: a prefix of 512, one block")
    quality.add_argument("--seed", type=int, default=1)
    quality.set_defaults(run=_quality)
    stages = commands.add_parser("stages")
    stages.add_argument("cache")
    stages.add_argument("--setting", action="append")
    stages.set_defaults(run=_stages)
    compare = commands.add_parser("compare")
    compare.add_argument("cache")
    compare.add_argument("--kakeya", required=True, help="the kakeya command")
    compare.set_defaults(run=_compare)
    for sub in (quality, stages):
        sub.add_argument("--kakeya", required=True, help="the kakeya command")
        sub.add_argument("--profile", default="", help="of tools.calibrate.guardrails")
        sub.add_argument("--block-tokens", type=int, default=512)
        sub.add_argument("--residual", type=int, default=0,
                         help="newest tokens never sealed (published: 256)")
        sub.add_argument("--out", required=True)
    return parser


def _quality(args):
    from bench.kakeya import attention
    from bench.quality import evaluate, report, results, roundtrip
    from tools.calibrate import text
    from tools.models import fetch, forward, tokenizer
    path = fetch.resolve(args.model)
    model, tok = forward.Model.from_gguf(path), tokenizer.Tokenizer.from_gguf(path)
    passages = text.cut(text.read_kinds(args.text), tok.encode, args.passages, args.tokens,
                        args.seed)
    known = codecs.settings(len(model.config.layers))
    made = []
    for name in args.setting or ["identity", *known]:
        if name == "identity":
            made.append(roundtrip.Identity())
            continue
        if name not in known:
            raise ValueError(f"setting {name!r} is not one of {', '.join(known)}")
        weights = attention.Weights(model) if name.startswith("attention") else None
        made.append(codecs.Kakeya(name, args.kakeya, known[name], args.profile,
                                  args.block_tokens, args.residual, weights=weights))
    folder = pathlib.Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    found = results.Results(folder / "results.jsonl")
    found.start_run(args.seed, model.device)
    evaluate.evaluate(model, passages, made, args.variant or ["kv"],
                      args.protocol or ["prefix"], found, args.tokens, args.seed)
    report.write(found, folder)
    print(report.markdown(report.build(found)))


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
    known = codecs.settings(1 << 9)
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
