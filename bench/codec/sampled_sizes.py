"""How well `kvcask project --like` foretells the sizes of caches that it has not seen.

  python3 bench/codec/sampled_sizes.py --kvcask KVCASK --profile PROFILE ... \
      [--quality balanced ...] CACHE.safetensors ...

Caches are files of one model, all of one length but for longer ones, named KIND-N.safetensors
as `kvcask-eval capture` names them. Prints, for each profile and quality:

  same kind  each cache from the others of its kind (at least two)
  mixed      each cache from all others of all kinds
  longer     a longer cache from the shorter ones of its kind

  sessions within 3 %  of the caches that were foretold, how many; and how many lie
  inside the interval  that is stated for one more session (19 of 20 should);
  its half width       on average
  means within 3 %     caches cut in halves, each kind by itself, in every way or in 2,000: how often
                       the mean of the one half is that of the other within 3 %

A session's real size is what `kvcask project` counts with that file as its only sample at its
own length: every page encoded (codec/recipe/sampled_size_test.cc: what the store holds, to the
byte). Means and intervals of several samples are computed here from the samples' sizes, as
codec/recipe/sampled_size.h defines them, and held against the command's once a profile and
quality.
"""

import argparse
import collections
import itertools
import json
import math
import pathlib
import random
import struct
import subprocess
import sys

# Student's t, 95 % on both sides, by degrees of freedom.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
       2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086)

MAX_CUTS = 2000


def student_t95(degrees):
    """As codec/recipe/sampled_size.cc has it."""
    if degrees <= len(T95):
        return T95[degrees - 1]
    z, n = 1.959964, degrees
    return z + (z ** 3 + z) / (4 * n) + (5 * z ** 5 + 16 * z ** 3 + 3 * z) / (96 * n * n)


def foretold(sizes):
    """(mean, half width for one more session, half width for their mean)."""
    k = len(sizes)
    mean = sum(sizes) / k
    s = math.sqrt(sum((x - mean) ** 2 for x in sizes) / (k - 1))
    half = student_t95(k - 1) * s
    return mean, half * math.sqrt(1 + 1 / k), half / math.sqrt(k)


def tokens_of(path):
    """Tokens of a cache file: the second dimension of its first K."""
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    return header["k.00"]["shape"][-2]


def project(args, profile, quality, files, tokens):
    """{tokens: row} of the command."""
    command = [args.kvcask, "project", "--json", "--profile", profile, "--codec",
               f"fklt:{quality}"]
    for file in files:
        command += ["--like", str(file)]
    for t in tokens:
        command += ["--tokens", str(t)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return {row["tokens"]: row for row in json.loads(done.stdout)}


def cases(sizes, length):
    """sizes: {file: (kind, tokens, {tokens: bytes})} -> [(how, samples' sizes, real)]."""
    short = {f: v for f, v in sizes.items() if v[1] == length}
    for file, (kind, tokens, real) in sizes.items():
        same = [v[2][tokens] for f, v in short.items() if v[0] == kind and f != file]
        if tokens != length:
            if len(same) > 1:
                yield "longer", same, real[tokens]
            continue
        if len(same) > 1:
            yield "same kind", same, real[tokens]
        yield "mixed", [v[2][tokens] for f, v in short.items() if f != file], real[tokens]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("caches", nargs="+", type=pathlib.Path)
    parser.add_argument("--kvcask", required=True)
    parser.add_argument("--profile", action="append", required=True)
    parser.add_argument("--quality", action="append")
    args = parser.parse_args()
    lengths = {f: tokens_of(f) for f in args.caches}
    length = collections.Counter(lengths.values()).most_common(1)[0][0]
    all_lengths = sorted(set(lengths.values()))
    print("| profile | quality | samples | caches | ratio | means within 3 % | sessions within 3 % |"
          " inside the interval | its half width |\n|---|---|---|---|---|---|---|---|---|", flush=True)
    for profile in args.profile:
        name = pathlib.Path(profile).name.removesuffix(".safetensors").removesuffix(".profile")
        for quality in args.quality or ("near_lossless", "balanced", "compact"):
            sizes, ratio = {}, {}
            for file in args.caches:
                wanted = all_lengths if lengths[file] == length else [lengths[file]]
                rows = project(args, profile, quality, [file], wanted)
                sizes[file] = (file.name.split("-")[0], lengths[file],
                               {t: row["stored_bytes"] for t, row in rows.items()})
                ratio[file] = rows[lengths[file]]["ratio"]
            some = [f for f in args.caches if lengths[f] == length][:2]
            row = project(args, profile, quality, some, [length])[length]
            mine = foretold([sizes[f][2][length] for f in some])
            theirs = (row["stored_bytes"], row["interval_one_session_bytes"],
                      row["interval_mean_bytes"])
            if any(abs(a - b) > 1e-6 * b for a, b in zip(mine, theirs)):
                sys.exit(f"{name} {quality}: the command says {theirs}, its definition {mine}")
            by = collections.defaultdict(list)
            for how, samples, real in cases(sizes, length):
                by[how].append((*foretold(samples), real))
            for how, found in by.items():
                print(line(name, quality, how, found, ratio.values(),
                           *halves(sizes, length, how)), flush=True)


def halves(sizes, length, how):
    """(cuts whose halves' means agree within 3 %, cuts)."""
    kinds = collections.defaultdict(list)
    for kind, tokens, real in sizes.values():
        if tokens == length:
            kinds[kind].append(real[tokens])
    cuts = {}
    for kind, of in kinds.items():
        cuts[kind] = [(chosen, [i for i in range(len(of)) if i not in chosen])
                      for chosen in itertools.combinations(range(len(of)), len(of) // 2)]
    if how == "same kind":
        pairs = [([kinds[k][i] for i in a], [kinds[k][i] for i in b])
                 for k in kinds for a, b in cuts[k]]
    elif how == "mixed":
        ways = math.prod(len(c) for c in cuts.values())
        if ways <= MAX_CUTS:
            chosen = list(itertools.product(*cuts.values()))
        else:
            rng = random.Random(1)
            chosen = [[rng.choice(c) for c in cuts.values()] for _ in range(MAX_CUTS)]
        pairs = [([kinds[k][i] for k, cut in zip(kinds, cuts_of) for i in cut[0]],
                  [kinds[k][i] for k, cut in zip(kinds, cuts_of) for i in cut[1]])
                 for cuts_of in chosen]
    else:
        return 0, 0
    near = sum(abs(sum(a) / len(a) * len(b) / sum(b) - 1) <= .03 for a, b in pairs)
    return near, len(pairs)


def line(name, quality, how, found, ratios, near, cuts):
    close = sum(abs(m / r - 1) <= .03 for m, _, _, r in found)
    inside = sum(abs(m - r) <= one for m, one, _, r in found)
    width = 100 * sum(one / m for m, one, _, _ in found) / len(found)
    means = f"{100 * near / cuts:.0f} % of {cuts} cuts" if cuts else ""
    return (f"| {name} | {quality} | {how} | {len(found)} | {sum(ratios) / len(ratios):.2f} | "
            f"{means} | {close} of {len(found)} | {inside} of {len(found)} | {width:.1f} % |")


if __name__ == "__main__":
    main()
