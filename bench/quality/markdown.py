"""A report as Markdown, and the tables that the HTML page has too."""

from bench.quality import needles

STEP_TITLES = {
    "": "", "prefix": "prefix, the headline", "faults": "planted faults",
    "whole": "whole sequence", "bfloat16": "prefix, computed in bfloat16",
    "long-8k": "prefix of 8,192 tokens", "long-16k": "prefix of 16,384 tokens",
    "in-forward": "in-forward", "streams": "K alone and V alone",
    "stages": "fklt's steps, one after another", "layers": "layers alone, and the first ones",
    "groups": "groups alone"}


def title(table):
    """One line that tells a table from the others of its model."""
    compute = "" if table["compute"] == "float32" else f", computed in {table['compute']}"
    name = STEP_TITLES.get(table["step"]) or table["protocol"] + compute
    return f"{name}, {table['tokens']} tokens a passage"


def columns(table):
    rows = listed(table)
    if table["step"] == "faults":
        return ["codec + fault", "KLD", "verdict", "found"]
    variant = ["variant"] if any(r["variant"] != "kv" for r in rows) else []
    return ["codec", *variant, "ratio", "bits", "dPPL %", "KLD", "p99 KL", "top-1 %",
            "worst passage", "n", "verdict", "own bar"]


def cells(table, r):
    if table["step"] == "faults":
        return [r["codec"], with_half(r["kld"], r["kld_half"], 5), r["verdict"],
                (r["faults"] or ["the loss alone"])[0]]
    variant = [r["variant"]] if "variant" in columns(table) else []
    stored = [f"{r['ratio']:.2f}", f"{r['bits']:.3f}"] if r["stored_bytes"] else ["n/a", "n/a"]
    return [r["codec"], *variant, *stored, with_half(r["dppl"], r["dppl_half"], 3),
            with_half(r["kld"], r["kld_half"], 5), f"{r['p99']:.4f}", f"{r['top1']:.2f}",
            f"{r['worst_kind']} {r['worst_passage']}: {r['worst_kld']:.5f}",
            str(r["passages"]), r["verdict"], "yes" if r["passes"] else "no"]


def listed(table):
    """The rows of the table itself; layers and groups alone are in the remarks."""
    return [r for r in table["rows"] if not r["variant"].startswith(("layer:", "group:"))]


def remarks(table):
    out = [f"{c['codec']}: the KLDs of {c['count']} {c['parts']}s, each replaced alone, add to "
           f"{c['sum_kld']:.5f}, all together {c['all_kld']:.5f} (dPPL {c['sum_dppl']:+.3f} % "
           f"and {c['all_dppl']:+.3f} %); worst alone: {c['worst']}, {c['worst_kld']:.5f}"
           for c in table["compounding"]]
    if table["step"] != "faults":
        out += [f"{r['codec']} {r['variant']} is rejected for what came back: "
                + "; ".join(r["faults"][:2])
                + (f"; and {len(r['faults']) - 2} more" if len(r["faults"]) > 2 else "")
                for r in table["rows"] if r["faults"]]
    clean = [r["ppl"] for r in table["rows"] if r["variant"] == "kv"]
    if clean and table["step"] in ("", "prefix", "whole", "long-8k", "long-16k"):
        out.append(f"perplexity of the clean run: {clean[0]:.3f}")
    return out


def by_kind(table):
    """(kinds, [[codec, a cell a kind]]) of the KLD and dPPL by kind of text, or None."""
    kinds = sorted({k for r in table["rows"] for k in r["by_kind"]})
    if len(kinds) < 2 or table["step"] not in ("", "prefix", "whole"):
        return None
    cell = lambda r, k: (f"{r['by_kind'][k]['kld']:.5f} ({r['by_kind'][k]['dppl']:+.2f})"
                         if k in r["by_kind"] else "")
    return kinds, [[r["codec"], *(cell(r, k) for k in kinds)]
                   for r in table["rows"] if r["variant"] == "kv" and not r["lossless"]]


def provenance(report):
    return [(run["command"], f"commit {run['commit']}, seed {run['seed']}, torch {run['torch']}, "
             f"{run['machine']}, {run['time']}") for run in report["runs"]]


def missing(report, model):
    """A sentence on what the plan has and this model has not."""
    return ("Not measured (no time left, a context beyond the model's, or a failure): "
            + ", ".join(report["missing"][model]) + ".")


def models(report):
    return list(dict.fromkeys([t["model"] for t in report["tables"]]
                              + [r["model"] for r in report["needles"]]))


def markdown(report, pictures=None):
    """pictures: model -> link of its rate-quality curve."""
    lines = ["# Quality", "", _INTRODUCTION, ""]
    for model in models(report):
        lines += [f"## {model}", ""]
        if pictures and model in pictures:
            lines += [f"![KLD over ratio, {model}]({pictures[model]})", ""]
        for table in report["tables"]:
            if table["model"] == model:
                lines += _section(table)
        rows = [r for r in report["needles"] if r["model"] == model]
        if rows:
            lines += [f"### {model}: needles", "", *needles.table(rows), ""]
        if model in report["missing"]:
            lines += [missing(report, model), ""]
    lines += ["## How it was measured", ""]
    lines += [f"- `{command}`: {where}" for command, where in provenance(report)]
    return "\n".join(lines) + "\n"


def _section(table):
    lines = [f"### {table['model']}: {title(table)}", "", *_table(
        columns(table), [cells(table, r) for r in listed(table)])]
    if remarks(table):
        lines += [""] + [f"- {text}" for text in remarks(table)]
    kinds = by_kind(table)
    if kinds:
        lines += ["", "KLD (dPPL %) by kind of text:", "",
                  *_table(["codec", *kinds[0]], kinds[1])]
    return lines + [""]


def _table(head, rows):
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head),
            *("| " + " | ".join(r) + " |" for r in rows)]


def with_half(value, half, digits):
    half = "" if half is None else f" ± {half:.{digits}f}"
    return f"{value:.{digits}f}{half}"


_INTRODUCTION = """\
Generated by `kvcask-eval report`; [bench/quality](../bench/quality/README.md) says how to
repeat it, and what protocols, scores and verdicts are. Means over passages, ± half of the 95 %
interval. Ratio and bits against bf16, from the daemon's own counters, everything stored
counted; of `reference-` rows, which run in process, from ideal code length. `identity` must be
zero. `recompute` is the clean cache, computed again in other batch shapes: differences below
it mean nothing. "own bar": |dPPL| less its interval <= 1 %, top-1 >= 95 %, KLD <= .0105.

Codecs are those of the daemon at the commit named below. Clean runs compute in float32 from
bf16 weights and a bf16 cache, so small errors stay small, int8's among them. An engine that
computes in bfloat16 adds its own rounding: the tables "computed in bfloat16" have the same
bytes there. Planted faults are found by what came back, not by the loss alone; the limits for
that were set on these very measurements, so these tables show that the limits hold together,
not how often they err elsewhere."""
