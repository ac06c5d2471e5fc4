"""Retrieval: 7-digit numbers hidden in prose, one asked for, exact match.

The prose with its needles is the stored prefix; the question runs on the decoded cache. A
model that does not find nine in ten with its clean cache is reported so and not scored.
"""

import json
import random

import torch

from bench.quality import protocols

CITIES = ("Lisbon", "Oslo", "Cairo", "Lima", "Tokyo", "Vienna", "Dublin", "Prague",
          "Havana", "Athens")
NEEDLES = 4
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


def measure(model, tok, texts, contexts, trials, codecs, seed):
    """One dict a context and codec: {"context", "codec", "trials", "clean", "found",
    "scored", "ratio"}; found and ratio are None where the clean cache was not enough."""
    from tools.calibrate import text
    prose = " ".join(text.read_kinds(texts).values())
    rows = []
    for context in contexts:
        rng = random.Random(seed * 1000003 + context)
        clean, found = 0, {c.name: 0 for c in codecs}
        sizes = {c.name: [0, 0] for c in codecs}
        for trial in range(trials):
            prefix, question, number = make_prompt(tok, prose, context, rng)
            with torch.no_grad():
                run = model.run(torch.tensor([prefix]), keep_cache=True)
            cache = [(k[0].cpu(), v[0].cpu()) for k, v in run.cache]
            clean += answers(model, tok, cache, question, number)
            for codec in codecs:
                decoded = codec(model.config, cache, prefix)
                sizes[codec.name][0] += decoded.raw_bytes
                sizes[codec.name][1] += decoded.stored_bytes
                mixed = protocols.pick(cache, decoded.layers)
                found[codec.name] += answers(model, tok, mixed, question, number)
        scored = clean >= _CLEAN_ENOUGH * trials
        rows += [{"model": model.config.name, "context": context, "codec": c.name,
                  "trials": trials, "clean": clean, "scored": scored,
                  "found": found[c.name] if scored else None,
                  "ratio": sizes[c.name][0] / sizes[c.name][1] if scored else None}
                 for c in codecs]
    return rows


def write(folder, rows, provenance, seed):
    """needles.json and needles.md; prints the latter."""
    (folder / "needles.json").write_text(
        json.dumps({**provenance, "seed": seed, "rows": rows}, indent=1) + "\n")
    lines = ["| model | context | clean | codec | ratio | found |", "|---|---|---|---|---|---|"]
    for r in rows:
        found = (f"{r['found']} of {r['trials']}" if r["scored"]
                 else "not scored: the clean cache does not find them")
        ratio = f"{r['ratio']:.2f}" if r["scored"] else ""
        lines.append(f"| {r['model']} | {r['context']} | {r['clean']} of {r['trials']} | "
                     f"{r['codec']} | {ratio} | {found} |")
    lines += ["", f"`{provenance['command']}`: commit {provenance['commit']}, seed {seed}, "
              f"{provenance['machine']}"]
    text = "\n".join(lines) + "\n"
    (folder / "needles.md").write_text(text)
    print(text)
