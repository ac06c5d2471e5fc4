"""Measures: every passage x protocol x codec x variant that the results file lacks."""

import collections
import concurrent.futures
import dataclasses
import sys
import time

from bench.quality import inprocess, protocols, roundtrip

VARIANTS = ("kv", "k", "v", "layers", "first", "groups")


class UsageError(ValueError):
    """A codec or variant that means nothing; the message lists what does."""


def make_codec(spec, daemon):
    """A Roundtrip from NAME[:QUALITY][@PROFILE][+FAULT].

    NAME: identity, recompute, reference-int8, reference-int4, reference-fklt[/STAGE] (in
    process), anything else a codec of the daemon ("profile": what the profile says).
    PROFILE: its file. FAULT: roundtrip.Fault.KINDS. daemon(name, quality, profile) makes
    the daemon's.
    """
    base, plus, fault = spec.rpartition("+") if "+" in spec else (spec, "", "")
    base, _, profile = base.partition("@")
    name, _, quality = base.partition(":")
    if name == "identity":
        made = roundtrip.Identity()
    elif name == "recompute":
        made = inprocess.Recompute()
    elif name in ("reference-int8", "reference-int4"):
        made = roundtrip.ScalarReference(int(name[-1]))
    elif name.partition("/")[0] == "reference-fklt":
        if not profile:
            raise UsageError(f"{spec}: {name} needs a profile: {name}:QUALITY@PROFILE")
        made = inprocess.FkltReference(profile, quality, name.partition("/")[2])
    else:
        made = daemon("" if name == "profile" else name, quality, profile)
    return roundtrip.Fault(made, fault) if plus else made


def variants(names, config, codec=None):
    """Variant name -> function (clean cache, decoded cache) -> cache to score.

    Names: kv, k, v, layers (each layer alone, as layer:0 ...), first (the first 1, 2, 4, ...
    layers, as first:1 ...), groups (each group of the codec alone, as group:0 ...; for
    codecs that do not tell theirs, nothing).
    """
    def streams(which, layers=None):
        return lambda clean, decoded: protocols.pick(clean, decoded, which, layers)

    out, layer_count = {}, len(config.layers)
    for name in names:
        if name in ("kv", "k", "v"):
            out[name] = streams(name)
        elif name == "layers":
            out.update({f"layer:{i}": streams("kv", {i}) for i in range(layer_count)})
        elif name == "first":
            k = 1
            while k < layer_count:
                out[f"first:{k}"] = streams("kv", set(range(k)))
                k *= 2
        elif name == "groups":
            groups = codec.groups(config) if hasattr(codec, "groups") else []
            out.update({f"group:{i}": lambda clean, decoded, g=g: protocols.pick_heads(
                clean, decoded, g) for i, g in enumerate(groups)})
        else:
            raise UsageError(f"variant {name!r} is not one of {', '.join(VARIANTS)}")
    return out


def evaluate(model, passages, codecs, names, protocol_names, results, tokens, seed,
             progress=sys.stderr, jobs=1, deadline=None):
    """Fills `results`. passages: objects with .kind and .ids, numbered as they come;
    protocols that a codec cannot be measured by are left out and said so.

    jobs: passages under way at a time (daemon and GPU then work side by side); results are
    written in the order of the passages whatever it is. deadline: time.monotonic() after
    which no passage is begun. Returns True when all is done.
    """
    variants(names, model.config)  # refuses unknown names before any work
    for codec in codecs:
        if hasattr(codec, "bind"):
            codec.bind(model)
        if "in-forward" in protocol_names and not codec.layer_local:
            print(f"{codec.name}: in-forward n/a (not coded layer by layer, or not apart)",
                  file=progress)

    compute = str(model.dtype).rpartition(".")[2]
    began, done, number = time.monotonic(), 0, -1

    def measure(number, passage):
        """(key, score, lossless) of one passage, each when it is there."""
        for protocol in protocol_names:
            clean = None
            for codec in codecs:
                wanted = _wanted(names, model.config, codec, protocol)
                key = lambda v: dict(model=model.config.name, tokens=tokens, seed=seed,
                                     compute=compute, protocol=protocol, codec=codec.name,
                                     variant=v)
                missing = {v: w for v, w in wanted.items() if not results.has(
                    **key(v), kind=passage.kind, passage=number)}
                if not missing:
                    continue
                if clean is None:
                    clean = protocols.Passage(model, protocol, list(map(int, passage.ids)))
                for v, score in _scores(clean, codec, missing, passage.kind, number,
                                        model.config):
                    yield key(v), score, codec.lossless

    def in_time():
        return deadline is None or time.monotonic() < deadline

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        measured = (measure(n, p) for n, p in enumerate(passages))
        if jobs > 1:
            measured = _ahead(pool, measured, jobs, in_time)
        for number, (passage, found) in enumerate(zip(passages, measured)):
            if not in_time() and jobs == 1:
                return False
            for key, score, lossless in found:
                results.add(score, **key, lossless=lossless)
                done += 1
            print(f"passage {number + 1} of {len(passages)} ({passage.kind}): {done} scores, "
                  f"{time.monotonic() - began:.0f} s", file=progress, flush=True)
    return number + 1 == len(passages)


def _ahead(pool, measured, jobs, in_time):
    """The lists of `measured`, in order, up to `jobs` of them under way at a time, until
    in_time() says no: then those under way, and no more."""
    under_way = collections.deque()
    for one in measured:
        if not in_time():
            break
        under_way.append(pool.submit(list, one))
        if len(under_way) > jobs:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


def _wanted(names, config, codec, protocol):
    if protocol == "in-forward":
        return {"kv": None} if codec.layer_local and "kv" in names else {}
    return variants(names, config, codec)


def _scores(clean, codec, wanted, kind, number, config):
    if clean.protocol == "in-forward":
        yield "kv", clean.score_in_forward(codec, kind, number)
        return
    decoded = codec(config, clean.cache, clean.token_ids)
    for name, choose in wanted.items():
        score = clean.score(choose(clean.cache, decoded.layers), kind, number,
                            decoded.raw_bytes, decoded.stored_bytes)
        if name == "kv":
            score = dataclasses.replace(score, heads=clean.heads(decoded.layers))
        yield name, score
