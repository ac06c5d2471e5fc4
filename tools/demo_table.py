"""The part of tools/demo that talks to the daemon: puts, gets, compares, prints the table.

    demo_table.py KVCASK_BINARY EXAMPLES_FOLDER WORK_FOLDER

The daemon is KVCASK_SERVER's. Ends with 1 when a get fails, when a range is not what the
whole has there, or when a codec that calls itself lossless is not.

"The same" is byte for byte for codecs without a float transform. With one, the order of
summation may depend on how many tokens are decoded together, so that a few elements round to
the neighbouring bf16: RANGE_TOLERANCE.
"""

import json
import pathlib
import statistics
import subprocess
import sys

RUNS = 5
RANGE = (100, 228)
RANGE_TOLERANCE = 1e-4  # relative RMS


class Kvcask:
    def __init__(self, binary):
        self.binary = binary

    def __call__(self, *args, ok=(0,)):
        result = subprocess.run([self.binary, *map(str, args), "--json"],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if result.returncode not in ok:
            sys.exit(f"kvcask {' '.join(map(str, args))}\n{result.stderr.strip()}")
        return json.loads(result.stdout)


def measure(kvcask, cache, codec, extra, work):
    """Puts and gets `cache` RUNS times; a row of the table. codec: its name in the table."""
    whole, part = work / "whole", work / "part"
    put_s, get_s, part_s = [], [], []
    for run in range(RUNS):
        session = f"demo-{run}"
        put_s.append(kvcask("put", cache, "--session", session, *extra)["seconds"])
        get_s.append(kvcask("get", "--session", session, "--out", whole)["seconds"])
        part_s.append(kvcask("get", "--session", session, "--out", part, "--tokens",
                             f"{RANGE[0]}:{RANGE[1]}")["seconds"])
        stat = kvcask("stat", "--session", session)
        if run + 1 < RUNS:  # so that no run finds the chunks of the one before
            kvcask("rm", session)
    difference = kvcask("diff", cache, whole, ok=(0, 4))
    parts = kvcask("diff", whole, part, ok=(0, 4))
    apart = max(s["relative_rms"] for s in parts["streams"].values())
    if parts["token_ids_differ"] or apart > (RANGE_TOLERANCE if stat["predicted_kld"] else 0):
        sys.exit(f"{codec}: tokens {RANGE} fetched alone differ from those of the whole: "
                 f"relative RMS {apart}")
    kvcask("rm", session)
    whole.unlink()
    part.unlink()
    streams = difference["streams"]
    return {
        "codec": codec,
        "tokens": stat["tokens"],
        "raw MB": f"{stat['raw_bytes'] / 1e6:.2f}",
        "stored MB": f"{stat['stored_bytes'] / 1e6:.2f}",
        "ratio": f"{stat['ratio']:.2f}",
        "K rel. RMS": f"{streams['K']['relative_rms']:.5f}",
        "V rel. RMS": f"{streams['V']['relative_rms']:.5f}",
        "max abs error": f"{max(s['max_abs_error'] for s in streams.values()):.4g}",
        "predicted KLD": f"{stat['predicted_kld']:.4f}" if stat["predicted_kld"] else "",
        "exact": "yes" if difference["exact"] else "no",
        "put ms": f"{statistics.median(put_s) * 1e3:.1f}",
        "get ms": f"{statistics.median(get_s) * 1e3:.1f}",
        f"{RANGE[0]}:{RANGE[1]} ms": f"{statistics.median(part_s) * 1e3:.1f}",
    }


def print_table(rows):
    """Markdown, which reads as well on a terminal."""
    columns = list(rows[0])
    widths = [max(len(c), *(len(str(r[c])) for r in rows)) for c in columns]

    def line(cells):
        aligned = [str(c).ljust(w) if i == 0 else str(c).rjust(w)
                   for i, (c, w) in enumerate(zip(cells, widths))]
        return "| " + " | ".join(aligned) + " |"

    print(line(columns))
    print("|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":"
                         for i, w in enumerate(widths)) + "|")
    for r in rows:
        print(line(r.values()))


def main():
    kvcask, examples, work = Kvcask(sys.argv[1]), pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    cache = examples / "smollm2-135m-book-256.safetensors"
    profiles = sorted(examples.glob("*.profile.safetensors"))
    rows = []
    for codec in kvcask("codecs"):
        name, extra = codec["name"], ["--codec", codec["name"]]
        if codec["needs_profile"]:
            fitting = [p for p in profiles if name in p.name]
            if not fitting:
                print(f"tools/demo: {name}: no profile for it in examples/, left out")
                continue
            extra += ["--profile", fitting[0]]
        print(f"tools/demo: {name}: put, get whole, get tokens {RANGE[0]} to {RANGE[1]}, compare; "
              f"{RUNS} times")
        qualities = [q for q in codec["qualities"] if q] or [""]
        if len(qualities) > 3:  # recipes: one stands for all; `kvcask codecs` lists them
            qualities = [""] if "" in codec["qualities"] else qualities[:1]
        for quality in qualities:
            dial = ["--quality", quality] if quality else []
            rows.append(measure(kvcask, cache, " ".join([name, quality]).strip(), extra + dial,
                                work))
        if codec["lossless"] and rows[-1]["exact"] != "yes":
            sys.exit(f"{name} calls itself lossless, and what came back differs")
    print(f"\n{cache.name}: the KV cache of SmolLM2-135M-Instruct on 256 tokens of a novel.\n"
          f"Ratio against bf16, everything stored counted; predicted KLD in nats a token, by the\n"
          f"codec's own certificate; times at the client, medians of {RUNS} "
          f"({RANGE[0]}:{RANGE[1]}: a get of these tokens alone).\n")
    print_table(rows)
    print()


main()
