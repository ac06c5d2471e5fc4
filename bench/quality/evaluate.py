"""Measures: every passage x protocol x codec x variant that the results file lacks."""

import sys
import time

from bench.quality import protocols, roundtrip


class UsageError(ValueError):
    """A codec or variant that means nothing; the message lists what does."""


def make_codec(spec, daemon):
    """A Roundtrip from NAME[:QUALITY][@PROFILE][+FAULT].

    NAME: identity, reference-int8, reference-int4 (in process), anything else a codec of
    the daemon ("profile": what the profile says). PROFILE: its file. FAULT:
    roundtrip.Fault.KINDS. daemon(name, quality, profile) makes the daemon's.
    """
    base, plus, fault = spec.rpartition("+") if "+" in spec else (spec, "", "")
    base, _, profile = base.partition("@")
    name, _, quality = base.partition(":")
    if name == "identity":
        made = roundtrip.Identity()
    elif name in ("reference-int8", "reference-int4"):
        made = roundtrip.ScalarReference(int(name[-1]))
    else:
        made = daemon("" if name == "profile" else name, quality, profile)
    return roundtrip.Fault(made, fault) if plus else made


def variants(names, layer_count):
    """Variant name -> (streams, layers). Names: kv, k, v, layers (each layer alone, as
    layer:0 ...), first (the first 1, 2, 4, ... layers, as first:1 ...)."""
    out = {}
    for name in names:
        if name in ("kv", "k", "v"):
            out[name] = (name, None)
        elif name == "layers":
            out.update({f"layer:{i}": ("kv", {i}) for i in range(layer_count)})
        elif name == "first":
            k = 1
            while k < layer_count:
                out[f"first:{k}"] = ("kv", set(range(k)))
                k *= 2
        else:
            raise UsageError(f"variant {name!r} is not one of kv, k, v, layers, first")
    return out


def evaluate(model, passages, codecs, names, protocol_names, results, tokens, seed,
             progress=sys.stderr):
    """Fills `results`. passages: objects with .kind and .ids, numbered as they come;
    protocols that a codec cannot be measured by are left out and said so."""
    chosen = variants(names, len(model.config.layers))
    said = set()
    began, done = time.monotonic(), 0
    for number, passage in enumerate(passages):
        for protocol in protocol_names:
            clean = None
            for codec in codecs:
                if protocol == "in-forward" and not codec.layer_local:
                    if codec.name not in said:
                        print(f"{codec.name}: in-forward n/a (not coded layer by layer in "
                              "process)", file=progress)
                    said.add(codec.name)
                    continue
                wanted = {v: c for v, c in chosen.items()
                          if protocol != "in-forward" or v == "kv"}
                key = lambda v: dict(model=model.config.name, tokens=tokens, seed=seed,
                                     protocol=protocol, codec=codec.name, variant=v)
                missing = [v for v in wanted if not results.has(
                    **key(v), kind=passage.kind, passage=number)]
                if not missing:
                    continue
                if clean is None:
                    clean = protocols.Passage(model, protocol, list(map(int, passage.ids)))
                for v, score in _scores(clean, codec, {v: wanted[v] for v in missing},
                                        passage.kind, number, model.config):
                    results.add(score, **key(v), lossless=codec.lossless)
                    done += 1
        print(f"passage {number + 1} of {len(passages)} ({passage.kind}): {done} scores, "
              f"{time.monotonic() - began:.0f} s", file=progress, flush=True)


def _scores(clean, codec, wanted, kind, number, config):
    if clean.protocol == "in-forward":
        yield "kv", clean.score_in_forward(codec, kind, number)
        return
    decoded = codec(config, clean.cache, clean.token_ids)
    for name, (streams, layers) in wanted.items():
        mixed = protocols.pick(clean.cache, decoded.layers, streams, layers)
        yield name, clean.score(mixed, kind, number, decoded.raw_bytes, decoded.stored_bytes)
