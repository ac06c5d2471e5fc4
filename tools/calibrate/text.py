"""Text files -> passages of a fixed number of tokens, some kept apart.

Each kind of text gives the same number of passages, spread evenly over its files with a
jitter that the seed decides; passages never overlap. Where several files of a kind are
given they are joined; a .json file holds agent transcripts.
"""

import dataclasses
import json

import numpy as np


class TextError(ValueError):
    """Text that cannot give the passages asked for; the message says how much is missing."""


@dataclasses.dataclass(frozen=True)
class Passage:
    kind: str
    begin: int        # in the characters of the kind's joined files
    ids: np.ndarray   # int64 [tokens]


def read_kinds(specs):
    """["KIND=FILE", ...] -> {kind: text}, in the order given."""
    kinds = {}
    for spec in specs:
        kind, equals, path = spec.partition("=")
        if not equals or not kind or not path:
            raise TextError(f"--text {spec!r}: expected KIND=FILE")
        try:
            with open(path, encoding="utf-8") as f:
                body = transcripts(json.load(f)) if path.endswith(".json") else f.read()
            kinds[kind] = kinds.get(kind, "") + body
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise TextError(f"--text {spec}: {e}") from e
    if not kinds:
        raise TextError("no --text KIND=FILE was given")
    return kinds


def transcripts(runs):
    """Agent transcripts, [{"traj": [{"role", "content", "tool_calls"}]}], as dialogues."""
    out = []
    for run in runs:
        for m in run["traj"]:
            calls = [c["function"] for c in m.get("tool_calls") or []]
            said = m.get("content") or ""
            out.append(f"{m['role']}: " + " ".join(
                [said] * bool(said) + [json.dumps({"tool_call": c}) for c in calls]))
        out.append("")
    return "\n".join(out)


def cut(kinds, encode, count, tokens, seed):
    """`count` passages over all kinds, in turn (a kind each), of `tokens` tokens each.

    encode(text) -> list of ids. Deterministic in (kinds, count, tokens, seed).
    """
    rng = np.random.default_rng(seed)
    names = list(kinds)
    share = [count // len(names) + (i < count % len(names)) for i in range(len(names))]
    per_kind = [_cut_kind(name, kinds[name], encode, n, tokens, rng)
                for name, n in zip(names, share)]
    return [per_kind[i % len(names)][i // len(names)] for i in range(count)
            if i // len(names) < share[i % len(names)]]


def _cut_kind(kind, text, encode, count, tokens, rng):
    out, at = [], 0
    for i in range(count):
        # the i-th of `count` equal spans: start within its first tenth, at a line's start
        begin, end = len(text) * i // count, len(text) * (i + 1) // count
        start = max(at, begin + int(rng.integers(0, max(1, (end - begin) // 10))))
        line = text.find("\n", start) + 1
        start = line if 0 < line < end else start
        take, ids = tokens * 5, []
        while start + take // 2 < end or not ids:
            ids = encode(text[start:min(start + take, end)])
            if len(ids) > tokens or start + take >= end:
                break
            take *= 2
        # the last token may be cut short by the slice's end: never use it
        if len(ids) <= tokens:
            raise TextError(
                f"{kind}: {len(text)} characters are too little for {count} passages of "
                f"{tokens} tokens: passage {i} has {len(ids)} tokens in {end - begin} "
                "characters; give more text, or ask for fewer or shorter passages")
        out.append(Passage(kind, start, np.asarray(ids[:tokens], np.int64)))
        at = end
    return out
