"""python3 -m tools.models: fetch, look at, capture from and export models."""

import argparse
import json
import pathlib
import sys

from tools.models import fetch


def _parser():
    parser = argparse.ArgumentParser(prog="python3 -m tools.models", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    known = ", ".join(fetch.KNOWN_MODELS)

    def command(name, run, text, model=True):
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        if model:
            sub.add_argument("model", help=f"a GGUF file, or one of: {known}")
        return sub

    sub = command("fetch", _fetch, "download models and print their paths", model=False)
    sub.add_argument("names", nargs="+", metavar="NAME", help=f"all, or some of: {known}")
    command("info", _info, "print a model's configuration and KV geometry as JSON")
    sub = command("ppl", _ppl, "perplexity of the first tokens of a text")
    _text_arguments(sub)
    sub = command("capture", _capture, "write the KV cache of a text as safetensors")
    _text_arguments(sub)
    sub.add_argument("--out", required=True, help="the file to write")
    sub = command("export-hf", _export, "make a Hugging Face directory")
    sub.add_argument("--out", required=True, help="the directory to write")
    return parser


def _text_arguments(sub):
    sub.add_argument("--text", required=True, help="a UTF-8 file")
    sub.add_argument("--tokens", type=int, default=512)
    sub.add_argument("--skip", type=int, default=0, help="tokens left out at the start")
    sub.add_argument("--device", default="cpu")


def _fetch(args):
    for name in fetch.KNOWN_MODELS if args.names == ["all"] else args.names:
        print(fetch.fetch(name))


def _info(args):
    import dataclasses

    from tools.models import gguf_reader
    path = fetch.resolve(args.model)
    config = gguf_reader.GgufFile(path).config(fetch.title_of(path))
    plain = {k: v for k, v in dataclasses.asdict(config).items() if k != "layers"}
    print(json.dumps({**plain, "kv_bytes_per_token": config.kv_bytes_per_token,
                      "geometry": config.geometry()}, indent=2))


def _model_and_ids(args):
    from tools.models import forward, tokenizer
    path = fetch.resolve(args.model)
    # enough text for the tokens wanted: none is longer than 64 bytes on average
    text = pathlib.Path(args.text).read_text(encoding="utf-8")[:64 * (args.skip + args.tokens)]
    ids = tokenizer.Tokenizer.from_gguf(path).encode(text)[args.skip:args.skip + args.tokens]
    if len(ids) < args.tokens:
        raise ValueError(f"{args.text} has {len(ids)} tokens after the first {args.skip}, "
                         f"expected {args.tokens}")
    return forward.Model.from_gguf(path, device=args.device), ids


def _ppl(args):
    from tools.models import perplexity
    model, ids = _model_and_ids(args)
    print(f"{model.config.name}: perplexity {perplexity.perplexity(model, ids):.4f} "
          f"over {len(ids)} tokens of {args.text}")


def _capture(args):
    import torch

    from tools.models import cache
    model, ids = _model_and_ids(args)
    with torch.no_grad():
        run = model.run(torch.tensor([ids]), keep_cache=True)
    cache.write(args.out, model.config, run.cache, ids)
    print(f"{args.out}: {len(ids)} tokens, {len(ids) * model.config.kv_bytes_per_token} bytes "
          "of K and V")


def _export(args):
    from tools.models import hf_export
    print(hf_export.export(fetch.resolve(args.model), args.out))


def main(argv=None):
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except (fetch.FetchError, ValueError, OSError) as e:
        print(f"tools.models {args.command}: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
