"""The whole table of one model in one go, the most wanted figures first.

A plan is a list of steps; each has a folder of its own with a results file, so that what was
measured is kept when the time is up, and the same command goes on where it stopped. Model,
daemon and profiles are loaded once. Codecs are those that the daemon says it has, in all
their qualities, with each of the profiles where they need one.
"""

import dataclasses
import gc
import sys
import time
import traceback

from bench.quality import evaluate, inprocess, needles, results, roundtrip


@dataclasses.dataclass(frozen=True)
class Step:
    """codecs: a function of Codecs -> specs of evaluate.make_codec."""

    name: str
    codecs: object
    passages: int = 32
    tokens: int = 2048
    protocol: str = "prefix"
    variants: tuple = ("kv",)
    compute: str = "float32"
    jobs: int = 6


@dataclasses.dataclass(frozen=True)
class Codecs:
    """What there is: served maps a codec of the daemon to (needs_profile, qualities)."""

    served: dict
    profiles: tuple

    def of(self, name, qualities=None, profiles=None):
        needs_profile, all_qualities = self.served[name]
        chosen = [q for q in all_qualities if qualities is None or q in qualities]
        ends = [f"@{p}" for p in (self.profiles if profiles is None else profiles)]
        return [f"{name}{q}{end}" for end in (ends if needs_profile else [""])
                for q in ([f":{q}" for q in chosen] or [""])]

    def all(self, qualities=None, profiles=None, but=()):
        return [s for n in self.served if n not in but
                for s in self.of(n, qualities, profiles)]

    def calibrated(self, qualities, profiles=None):
        return [s for n, (needs, _) in self.served.items() if needs
                for s in self.of(n, qualities, profiles)]


def _faults(c):
    return [f"{spec}+{kind}" for spec in ["raw", "int8", *c.calibrated(("balanced",),
                                                                       c.profiles[:1])]
            for kind in roundtrip.Fault.KINDS]


def _references(c):
    return [f"reference-fklt:{q}@{p}" for p in c.profiles
            for q in ("near_lossless", "balanced", "compact")]


def _stages(c):
    return [f"reference-fklt{stage}:balanced@{c.profiles[0]}" for stage in
            [*("/" + s for s in inprocess.STAGES), ""]] if c.profiles else []


_ONE = ("balanced",)
STEPS = (
    Step("prefix", lambda c: ["identity", "recompute", *c.all()]),
    Step("faults", _faults, passages=8),
    Step("whole", lambda c: ["identity", *c.all(profiles=c.profiles[:1], but=("raw",))],
         protocol="whole", jobs=4),
    Step("bfloat16", lambda c: ["identity", "recompute", "int8",
                                *c.calibrated(None, c.profiles[:1])],
         passages=16, compute="bfloat16"),
    Step("needles-2k", lambda c: ["int8", *c.all(None, c.profiles[:1], but=("raw", "int8"))],
         passages=20, tokens=2048, protocol="needles"),
    Step("needles-6k", lambda c: ["int8", *c.all(None, c.profiles[:1], but=("raw", "int8"))],
         passages=20, tokens=6144, protocol="needles", jobs=4),
    Step("long-8k", lambda c: ["identity", "int8", *c.calibrated(None, c.profiles[:1])],
         passages=8, tokens=8192, jobs=3),
    Step("in-forward", lambda c: ["identity", "reference-int8", "reference-int4", *_references(c),
                                  *c.all(_ONE, (), but=("raw",))], passages=8,
         protocol="in-forward", jobs=4),
    Step("streams", lambda c: ["int8", *c.calibrated(_ONE, c.profiles[:1])], passages=8,
         variants=("kv", "k", "v")),
    Step("stages", _stages, passages=8),
    Step("needles-16k", lambda c: ["int8", *c.calibrated(None, c.profiles[:1])], passages=10,
         tokens=16384, protocol="needles", jobs=2),
    Step("long-16k", lambda c: ["identity", "int8", *c.calibrated(None, c.profiles[:1])],
         passages=4, tokens=16384, jobs=2),
    Step("layers", lambda c: ["int8", *c.calibrated(_ONE, c.profiles[:1])], passages=4,
         variants=("kv", "layers", "first")),
    Step("groups", lambda c: c.calibrated(_ONE, c.profiles[:1]), passages=8,
         variants=("kv", "groups")),
)


def run(load, codecs, make, cut, texts, folder, device, budget, seed, chosen=None,
        shrink=None, progress=sys.stderr):
    """Takes the steps in turn until `budget` seconds are over; returns the names of those
    that are whole.

    load(compute) -> (model, tokenizer). make(spec) -> Roundtrip, kept from step to step.
    cut(tokenizer, passages, tokens) -> passages. chosen: names of steps (default: all).
    shrink: (passages, tokens) that no step goes beyond, for rehearsals.
    """
    began = time.monotonic()
    deadline = began + budget
    compute, model, tok, made, whole = None, None, None, {}, []
    for step in STEPS:
        if chosen and step.name not in chosen:
            continue
        if time.monotonic() > deadline:
            print(f"plan: no time left for {step.name}", file=progress, flush=True)
            continue
        if shrink:
            step = dataclasses.replace(step, passages=min(step.passages, shrink[0]),
                                       tokens=min(step.tokens, shrink[1]))
        print(f"plan: {step.name} at {time.monotonic() - began:.0f} s", file=progress, flush=True)
        try:
            if step.compute != compute:
                model = None
                gc.collect()
                model, tok = load(step.compute)
                compute = step.compute
            if step.tokens > model.config.context:
                print(f"plan: {step.name}: the model's context is {model.config.context} tokens",
                      file=progress, flush=True)
                continue
            ready = []
            for spec in step.codecs(codecs):
                if spec not in made:
                    made[spec] = make(spec)
                ready.append(made[spec])
            where = folder / step.name
            where.mkdir(parents=True, exist_ok=True)
            if step.protocol == "needles":
                if _needles(step, model, tok, ready, texts, where, seed, deadline, progress):
                    whole.append(step.name)
                continue
            found = results.Results(where / "results.jsonl")
            found.start_run(seed, device)
            if evaluate.evaluate(model, cut(tok, step.passages, step.tokens), ready,
                                 step.variants, [step.protocol], found, step.tokens, seed,
                                 progress, step.jobs, deadline):
                whole.append(step.name)
        except Exception:  # a step that fails must not take the others with it
            print(f"plan: {step.name} failed:\n{traceback.format_exc()}", file=progress,
                  flush=True)
    print(f"plan: whole: {', '.join(whole) or 'none'}; {time.monotonic() - began:.0f} s",
          file=progress, flush=True)
    return whole


def _needles(step, model, tok, codecs, texts, where, seed, deadline, progress):
    found = needles.Trials(where / "needles.jsonl")
    rows = needles.measure(model, tok, texts, [step.tokens], step.passages, codecs, seed, found,
                           step.jobs, deadline, progress)
    needles.write(where, rows, results.provenance(model.device), seed)
    mine = [r for r in rows if r["model"] == model.config.name and r["context"] == step.tokens]
    return bool(mine) and all(r["trials"] == step.passages for r in mine) and (
        not mine[0]["scored"] or len(mine) == len(codecs))
