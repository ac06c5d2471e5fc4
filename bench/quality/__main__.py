"""kvcask-eval: what compression costs a real model, measured through the daemon.

  python3 -m bench.quality run --model smollm2-135m --text wiki=F --text code=F ...
      --codec identity --codec int8 --kvcaskd PATH --kvcask PATH --out DIR
  python3 -m bench.quality report DIR
"""

import argparse
import contextlib
import pathlib
import sys

from bench.quality import evaluate, markdown, plan, protocols, report, results, roundtrip


def _parser():
    parser = argparse.ArgumentParser(
        prog="kvcask-eval", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure; goes on where it stopped")
    _common(run)
    run.add_argument("--passages", type=int, default=32, help="over all kinds (default 32)")
    run.add_argument("--tokens", type=int, default=2048, help="a passage (default 2048)")
    run.add_argument("--protocol", action="append", choices=protocols.PROTOCOLS,
                     help="repeatable (default: prefix)")
    run.add_argument("--variant", action="append", metavar="V",
                     help=", ".join(evaluate.VARIANTS) + "; repeatable (default: kv)")
    run.add_argument("--jobs", type=int, default=1, help="passages under way at a time")
    run.set_defaults(run=_run)
    everything = commands.add_parser(
        "plan", help="the whole table of a model, most wanted figures first, within --budget; "
        "goes on where it stopped")
    _common(everything)
    everything.add_argument("--budget", type=float, default=3600, metavar="SECONDS")
    everything.add_argument("--step", action="append", choices=[s.name for s in plan.STEPS],
                            help="only these; repeatable")
    everything.add_argument("--shrink", metavar="PASSAGES:TOKENS",
                            help="no step goes beyond this: for rehearsals")
    everything.set_defaults(run=_plan)
    capture = commands.add_parser("capture", help="write the passages' caches as safetensors")
    _common(capture)
    capture.add_argument("--passages", type=int, default=4)
    capture.add_argument("--tokens", type=int, default=2048)
    capture.set_defaults(run=_capture)
    needles = commands.add_parser("needles", help="retrieval of 7-digit numbers in prose")
    _common(needles)
    needles.add_argument("--context", type=int, action="append", help="tokens; repeatable")
    needles.add_argument("--trials", type=int, default=20, help="a context")
    needles.set_defaults(run=_needles)
    audit = commands.add_parser("audit", help="signal to noise and correlation, layer by layer "
                                "and stream by stream, of codecs on a cache file")
    audit.add_argument("cache", help="safetensors, as `capture` writes")
    _codec_options(audit)
    audit.add_argument("--model", help="a GGUF file or a known model's name: for codecs that "
                       "need the model")
    audit.add_argument("--tokens", type=int, help="compare the first so many alone (default: all)")
    audit.add_argument("--dump", help="folder for originals and decoded, 2-D F32 safetensors")
    audit.set_defaults(run=_audit)
    again = commands.add_parser("report", help="write report.json, .md and .html again")
    again.add_argument("out", nargs="+", help="folders that `run` or `plan` filled; of several, "
                       "one report is written to the first")
    again.add_argument("--docs", help="write the Markdown, with pictures, to this file too")
    again.add_argument("--pictures", help="folder for these pictures (default: beside --docs)")
    again.set_defaults(run=_report)
    return parser


def _common(sub):
    sub.add_argument("--model", required=True, help="a GGUF file or a known model's name")
    sub.add_argument("--text", action="append", required=True, metavar="KIND=FILE",
                     help="repeatable; .json: agent transcripts")
    _codec_options(sub)
    sub.add_argument("--out", required=True, help="folder for results and report")
    sub.add_argument("--seed", type=int, default=1)
    _compute_options(sub)


def _codec_options(sub):
    sub.add_argument("--codec", action="append", metavar="NAME[:QUALITY][@PROFILE][+FAULT]",
                     help="identity, recompute, reference-int8, reference-int4, "
                          "reference-fklt[/STAGE], or one of the daemon; repeatable (default: "
                          "identity)")
    sub.add_argument("--server", help="address of a running daemon")
    sub.add_argument("--kvcaskd", help="daemon to start, where --server names none")
    sub.add_argument("--kvcask", default="kvcask", help="the kvcask command")
    sub.add_argument("--profile", action="append", default=[],
                     help="profile file of codecs that need one and whose name has no @PROFILE; "
                          "`plan` takes several")
    sub.add_argument("--client", default="auto", choices=("auto", "python", "command"),
                     help="drive the daemon by the package kvcask, or by the kvcask command; "
                          "auto: the package where it is installed")


def _compute_options(sub):
    sub.add_argument("--device", default="cpu")
    sub.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"),
                     help="of weights and activations (default float32)")


@contextlib.contextmanager
def _daemon(args):
    """A function () -> (address, {codec name: CodecInfo}) that starts the daemon where it
    must, the first time."""
    from bench.quality import daemon
    with contextlib.ExitStack() as stack:
        known = []

        def get():
            if not known:
                address = args.server
                if not address:
                    if not args.kvcaskd:
                        raise evaluate.UsageError("the daemon's codecs need --server or --kvcaskd")
                    address = stack.enter_context(daemon.running(args.kvcaskd))
                known.append((address, _served(args, address)))
            return known[0]
        yield get


def _served(args, address):
    """{codec name: roundtrip.Served} of the daemon at `address`."""
    from bench.quality import python_client
    if _by_package(args):
        return python_client.served(address)
    return roundtrip.served(address, args.kvcask)


def _by_package(args):
    from bench.quality import python_client
    return args.client == "python" or args.client == "auto" and python_client.available()


def _maker(args, get_daemon):
    """spec -> Roundtrip."""
    from bench.quality import python_client

    def make(name, quality, profile):
        address, served = get_daemon()
        about = served.get(name)
        if name and about is None:
            raise evaluate.UsageError(f"the daemon has no codec {name!r}, only "
                                      + ", ".join(sorted(served)))
        if not profile and (not name or about.needs_profile):
            if not args.profile:
                raise evaluate.UsageError(f"codec {name or 'profile'} needs @PROFILE or --profile")
            profile = args.profile[0]
        lossless = bool(about and about.lossless)
        if _by_package(args):
            return python_client.ClientDaemon(address, name, quality, profile, lossless)
        return roundtrip.Daemon(address, name, quality, profile, args.kvcask, lossless)

    return lambda spec: evaluate.make_codec(spec, make)


@contextlib.contextmanager
def _codecs(args):
    """The Roundtrips of --codec, with a daemon for those that need one."""
    with _daemon(args) as get_daemon:
        make = _maker(args, get_daemon)
        yield [make(spec) for spec in args.codec or ["identity"]]


def _plan(args):
    shrink = [int(x) for x in args.shrink.split(":")] if args.shrink else None
    folder = _folder(args)
    with _daemon(args) as get_daemon:
        served = {name: (about.needs_profile, tuple(about.qualities))
                  for name, about in get_daemon()[1].items()}

        def load(compute):
            args.dtype = compute
            return _load(args)

        def cut(tok, passages, tokens):
            args.passages, args.tokens = passages, tokens
            return _passages(args, tok)

        plan.run(load, plan.Codecs(served, tuple(args.profile)), _maker(args, get_daemon), cut,
                 args.text, folder, args.device, args.budget, args.seed, args.step, shrink)
    report.write(report.build(*report.gather([folder])), folder)


def _load(args):
    import torch

    from tools.models import fetch, forward, tokenizer
    path = fetch.resolve(args.model)
    model = forward.Model.from_gguf(path, getattr(torch, args.dtype), args.device)
    return model, tokenizer.Tokenizer.from_gguf(path)


def _passages(args, tok):
    from tools.calibrate import text
    return text.cut(text.read_kinds(args.text), tok.encode, args.passages, args.tokens,
                    args.seed)


def _folder(args):
    folder = pathlib.Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _run(args):
    folder = _folder(args)
    with _codecs(args) as codecs:
        model, tok = _load(args)
        found = results.Results(folder / "results.jsonl")
        found.start_run(args.seed, model.device)
        evaluate.evaluate(model, _passages(args, tok), codecs, args.variant or ["kv"],
                          args.protocol or ["prefix"], found, args.tokens, args.seed,
                          jobs=args.jobs)
    built = report.build(found)
    report.write(built, folder)
    print(markdown.markdown(built))


def _capture(args):
    import torch

    from tools.models import cache
    model, tok = _load(args)
    for i, passage in enumerate(_passages(args, tok)):
        path = _folder(args) / f"{passage.kind}-{i:02d}.safetensors"
        with torch.no_grad():
            run = model.run(torch.as_tensor(passage.ids)[None], keep_cache=True)
        cache.write(path, model.config, run.cache, passage.ids.tolist())
        print(path)


def _audit(args):
    from bench.quality import audit
    if args.dump:
        pathlib.Path(args.dump).mkdir(parents=True, exist_ok=True)
    with _codecs(args) as codecs:
        if args.model:
            from tools.models import fetch, forward
            model = forward.Model.from_gguf(fetch.resolve(args.model))
            for codec in codecs:
                if hasattr(codec, "bind"):
                    codec.bind(model)
        print("\n".join(audit.markdown(*audit.audit(args.cache, codecs, args.dump,
                                                     args.tokens))))


def _needles(args):
    from bench.quality import needles
    folder = _folder(args)
    with _codecs(args) as codecs:
        model, tok = _load(args)
        found = needles.Trials(folder / "needles.jsonl")
        rows = needles.measure(model, tok, args.text, args.context or [2048], args.trials,
                               codecs, args.seed, found)
    needles.write(folder, rows, results.provenance(model.device), args.seed)


def _report(args):
    built = report.build(*report.gather(args.out))
    report.write(built, args.out[0])
    if args.docs:
        report.write_docs(built, args.docs, args.pictures or pathlib.Path(args.docs).parent)


def main(argv=None):
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except (ValueError, OSError, RuntimeError) as e:
        print(f"kvcask-eval {args.command}: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
