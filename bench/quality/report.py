"""From results files to one JSON-ready dict, and that to report.json, .md and .html.

Nothing in a report is typed by hand: change the measurement, not the table.
"""

import dataclasses
import json
import math
import pathlib
import re

from bench.quality import markdown, needles, page, plan, results, scores

_STEPS = [s.name for s in plan.STEPS]


def build(found, labels=None, needle_rows=()):
    """The report as one dict. found: a Results, or a list of them; labels: of each, the step
    of a plan that it belongs to, or "". Those of one step and model make one table."""
    found = found if isinstance(found, list) else [found]
    labels = labels or [""] * len(found)
    tables = {}
    for label, result in zip(labels, found):
        for (model, tokens, seed, compute, protocol, codec, variant), (rows, lossless) in (
                result.groups().items()):
            table = tables.setdefault((model, label, tokens, seed, compute, protocol), {})
            if (codec, variant) in table:
                raise ValueError(f"{result.path}: {codec} {variant} of {model} is in another "
                                 "file too")
            table[codec, variant] = _row(codec, variant, rows, lossless)
    order = lambda key: (_STEPS.index(key[1]) if key[1] in _STEPS else -1)
    models = list(dict.fromkeys(key[0] for key in tables))
    ordered = sorted(tables, key=lambda key: (models.index(key[0]), order(key)))
    names = ("model", "step", "tokens", "seed", "compute", "protocol")
    return {"runs": _distinct([run for r in found for run in r.runs]),
            "tables": [{**dict(zip(names, key)), "rows": list(tables[key].values()),
                        "compounding": compounding(list(tables[key].values()))}
                       for key in ordered],
            "needles": list(needle_rows), "missing": _missing(tables, needle_rows)}


def _row(codec, variant, rows, lossless):
    summary = scores.summarise(rows)
    kinds = sorted({r.kind for r in rows})
    return {"codec": codec, "variant": variant, "lossless": lossless, **_plain(summary),
            "ratio": summary.ratio if summary.stored_bytes else None,
            "bits": summary.bits if summary.stored_bytes else None,
            "verdict": scores.verdict(summary, lossless),
            "passes": scores.passes(summary, lossless),
            "by_kind": {k: {name: v for name, v in _plain(scores.summarise(
                [r for r in rows if r.kind == k])).items() if name in ("kld", "dppl", "top1")}
                        for k in kinds}}


def _missing(tables, needle_rows):
    """model -> the steps of a plan that left nothing, for models with any."""
    out = {}
    for model in dict.fromkeys(key[0] for key in tables if key[1]):
        there = {key[1] for key in tables if key[0] == model}
        contexts = {r["context"] for r in needle_rows if r["model"] == model}
        out[model] = [s.name for s in plan.STEPS if s.name not in there and not (
            s.protocol == "needles" and s.tokens in contexts)]
    return {model: steps for model, steps in out.items() if steps}


def _distinct(runs):
    """Runs, once for each command: a plan starts one for every step. Of paths the last part
    stays."""
    runs = [{**r, "command": re.sub(r"(?:/[\w.-]+)+/(?=[\w.-])", "", r["command"])} for r in runs]
    return list({(r["command"], r["commit"], r["seed"]): r for r in reversed(runs)}.values())[::-1]


def compounding(rows):
    """[{"codec", "parts": "layer" | "group", ...}]: the sum of the KLDs of layers (groups)
    replaced alone, beside the KLD of all together, for codecs with these variants."""
    out = []
    for row in rows:
        if row["variant"] != "kv":
            continue
        for parts in ("layer", "group"):
            single = [r for r in rows if r["codec"] == row["codec"]
                      and r["variant"].startswith(parts + ":")]
            if single:
                out.append({
                    "codec": row["codec"], "parts": parts, "count": len(single),
                    "passages": row["passages"],
                    "sum_kld": math.fsum(r["kld"] for r in single), "all_kld": row["kld"],
                    "sum_dppl": math.fsum(r["dppl"] for r in single), "all_dppl": row["dppl"],
                    "worst": max(single, key=lambda r: r["kld"])["variant"],
                    "worst_kld": max(r["kld"] for r in single)})
    return out


def gather(folders):
    """(Results, labels, needle rows) of the folders: those that hold a results file or
    needles, and whatever lies in or below the others. FileNotFoundError where nothing is."""
    found, labels, needle_rows = [], [], []
    for folder in map(pathlib.Path, folders):
        before = len(found) + len(needle_rows)
        for path in sorted(folder.rglob("results.jsonl")):
            result = results.Results(path)
            if result.rows:
                found.append(result)
                labels.append(path.parent.name if path.parent.name in _STEPS else "")
        for path in sorted(folder.rglob("needles.jsonl")):
            needle_rows += needles.rows(needles.Trials(path))
        if len(found) + len(needle_rows) == before:
            raise FileNotFoundError(f"{folder} holds no results.jsonl: `kvcask-eval run` or "
                                    "`plan` makes them")
    return found, labels, needle_rows


def write(report, folder):
    """Writes report.json, report.md, report.html into `folder`."""
    folder = pathlib.Path(folder)
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "report.md").write_text(markdown.markdown(report))
    (folder / "report.html").write_text(page.page(report))


def write_docs(report, path, pictures):
    """The Markdown to `path`, its pictures and the figures to the folder `pictures`."""
    path, pictures = pathlib.Path(path), pathlib.Path(pictures)
    pictures.mkdir(parents=True, exist_ok=True)
    links = {}
    for model, svg in page.rate_pictures(report):
        name = "".join(c if c.isalnum() else "-" for c in model.lower()) + ".svg"
        (pictures / name).write_text(svg + "\n")
        links[model] = (pictures / name).resolve().relative_to(path.resolve().parent).as_posix()
    (pictures / "report.json").write_text(json.dumps(report, separators=(",", ":")) + "\n")
    path.write_text(markdown.markdown(report, links))


def _plain(summary):
    """asdict, with NaN (no interval from one passage) as None, which JSON has."""
    return {k: None if isinstance(v, float) and math.isnan(v) else v
            for k, v in dataclasses.asdict(summary).items()}
