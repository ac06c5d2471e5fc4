"""Retrieval: 7-digit numbers hidden in prose, one asked for, exact match.

The prose with its needles is the stored prefix; the question runs on the decoded cache. A
model that does not find nine in ten with its clean cache is reported so and not scored.
"""

import concurrent.futures
import json
import random
import sys
import time

import torch

from bench.quality import protocols

CITIES = ("Lisbon", "Oslo", "Cairo", "Lima", "Tokyo", "Vienna", "Dublin", "Prague",
          "Havana", "Athens")
NEEDLES = 4
CLEAN = "clean"
_CLEAN_ENOUGH = 0.9


def make_prompt(tok, prose, context, rng):
    """(prefix ids, question ids, the number). The prefix is cut to `context` tokens of
    prose and needles; `rng` places the needles and picks the one asked for."""
    cities = rng.sample(CITIES, NEEDLES)
    numbers = {c: str(rng.randrange(1000000, 10000000)) for c in cities}
    needles = [tok.encode(f" The magic number of {c} is {numbers[c]}. ", add_bos=False)
               for c in cities]
    opening = tok.encode("<|im_start|>user\n", special=True)
    room = context - len(opening) - sum(map(len, needles))
    if room < NEEDLES:
        raise ValueError(f"a context of {context} tokens has no room for {NEEDLES} needles")
    start = rng.randrange(max(1, len(prose) - 8 * room))
    body = tok.encode(prose[start:start + 8 * room], add_bos=False)[:room]
    if len(body) < room:
        raise ValueError(f"the text is too short for a context of {context} tokens")
    places = sorted(rng.sample(range(1, room), NEEDLES), reverse=True)
    for place, needle in zip(places, needles):
        body[place:place] = needle
    asked = rng.choice(cities)
    question = tok.encode(f"\nWhat is the magic number of {asked}? Answer with the number."
                          "<|im_end|>\n<|im_start|>assistant\n"
                          f"The magic number of {asked} is", add_bos=False, special=True)
    return opening + body, question, numbers[asked]


def answers(model, tok, cache, question, number):
    """True if the greedy continuation of `question` on `cache` begins with `number`."""
    past = [(k[None].to(model.device), v[None].to(model.device)) for k, v in cache]
    with torch.no_grad():
        out = model.generate(torch.tensor([question]), 12, past)
    return tok.decode(out).strip().startswith(number)


class Trials:
    """A file of trials, one JSON object a line, appended as they are made: {"model",
    "context", "seed", "trial", "codec", "found", "raw_bytes", "stored_bytes"}. codec
    CLEAN is the clean cache."""

    def __init__(self, path):
        self.path, self.rows = path, []
        if path.exists():
            for line in path.read_text().splitlines(keepends=True):
                if line.endswith("\n"):  # the last may have been cut short by a stop
                    self.rows.append(json.loads(line))
            path.write_text("".join(json.dumps(r) + "\n" for r in self.rows))

    def find(self, **key):
        return [r for r in self.rows if all(r[k] == v for k, v in key.items())]

    def add(self, row):
        self.rows.append(row)
        with self.path.open("a") as f:
            f.write(json.dumps(row) + "\n")


def measure(model, tok, texts, contexts, trials, codecs, seed, found, jobs=1, deadline=None,
            progress=sys.stderr):
    """Fills `found`, a Trials, with what it lacks; the clean cache first, and codecs only
    where that is enough. Returns rows(): what it then holds. jobs, deadline: as
    evaluate.evaluate."""
    from tools.calibrate import text
    prose = " ".join(text.read_kinds(texts).values())
    name = model.config.name
    for codec in codecs:
        if hasattr(codec, "bind"):
            codec.bind(model)

    def one(context, trial, wanted):
        if deadline is not None and time.monotonic() > deadline:
            return []
        rng = random.Random((seed * 1000003 + context) * 1009 + trial)
        prefix, question, number = make_prompt(tok, prose, context, rng)
        with torch.no_grad():
            run = model.run(torch.tensor([prefix]), keep_cache=True)
        cache = [(k[0].cpu(), v[0].cpu()) for k, v in run.cache]
        out = []
        for codec in wanted:
            row = {"model": name, "context": context, "seed": seed, "trial": trial,
                   "codec": CLEAN, "raw_bytes": 0, "stored_bytes": 0}
            mixed = cache
            if codec is not None:
                decoded = codec(model.config, cache, prefix)
                mixed = protocols.pick(cache, decoded.layers)
                row.update(codec=codec.name, raw_bytes=decoded.raw_bytes,
                           stored_bytes=decoded.stored_bytes)
            out.append({**row, "found": answers(model, tok, mixed, question, number)})
        return out

    def all_of(context, chosen):
        where = dict(model=name, context=context, seed=seed)
        wanted = [[c for c in chosen if not found.find(
            **where, trial=t, codec=c.name if c else CLEAN)] for t in range(trials)]
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            for rows in pool.map(lambda t: one(context, t, wanted[t]),
                                 [t for t in range(trials) if wanted[t]]):
                for row in rows:
                    found.add(row)
        print(f"needles: {context} tokens, {', '.join(c.name if c else CLEAN for c in chosen)}: "
              "done", file=progress, flush=True)

    for context in contexts:
        all_of(context, [None])
        clean = found.find(model=name, context=context, seed=seed, codec=CLEAN)
        if len(clean) >= trials and _enough(clean):
            all_of(context, codecs)
    return rows(found)


def _enough(clean):
    return sum(r["found"] for r in clean) >= _CLEAN_ENOUGH * len(clean)


def rows(found):
    """One dict a model, context and codec: {"model", "context", "seed", "codec", "trials",
    "clean", "found", "scored", "ratio"}; codec, found and ratio are None where the clean
    cache was not enough. clean: of the same trials."""
    out = []
    for place in dict.fromkeys((r["model"], r["context"], r["seed"]) for r in found.rows):
        where = dict(zip(("model", "context", "seed"), place))
        clean = found.find(**where, codec=CLEAN)
        if not _enough(clean):
            out.append({**where, "codec": None, "trials": len(clean), "scored": False,
                        "clean": sum(r["found"] for r in clean), "found": None, "ratio": None})
            continue
        right = {r["trial"] for r in clean if r["found"]}
        for codec in dict.fromkeys(r["codec"] for r in found.find(**where)):
            mine = found.find(**where, codec=codec)
            raw, stored = (sum(r[k] for r in mine) for k in ("raw_bytes", "stored_bytes"))
            if codec != CLEAN:
                out.append({**where, "codec": codec, "trials": len(mine), "scored": True,
                            "clean": sum(r["trial"] in right for r in mine),
                            "found": sum(r["found"] for r in mine), "ratio": raw / stored})
    return out


def table(found_rows):
    """Lines of Markdown."""
    lines = ["| model | context | codec | ratio | clean | found |", "|---|---|---|---|---|---|"]
    for r in found_rows:
        cells = ([r["codec"], f"{r['ratio']:.2f}", f"{r['clean']} of {r['trials']}",
                  f"{r['found']} of {r['trials']}"] if r["scored"] else
                 ["", "", f"{r['clean']} of {r['trials']}",
                  "not scored: the clean cache does not find them"])
        lines.append(f"| {r['model']} | {r['context']} | " + " | ".join(cells) + " |")
    return lines


def write(folder, found_rows, provenance, seed):
    """needles.json and needles.md; prints the latter."""
    (folder / "needles.json").write_text(
        json.dumps({**provenance, "seed": seed, "rows": found_rows}, indent=1) + "\n")
    text = "\n".join(table(found_rows) + [
        "", f"`{provenance['command']}`: commit {provenance['commit']}, seed {seed}, "
        f"{provenance['machine']}"]) + "\n"
    (folder / "needles.md").write_text(text)
    print(text)
