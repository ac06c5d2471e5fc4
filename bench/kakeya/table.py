"""The tables of docs/kakeya.md: settings by protocol, from folders that `quality` filled."""

import pathlib

from bench.quality import results, scores


def gather(folders):
    """(model, variant) -> setting -> protocol -> (Summary, dPPL % of each passage)."""
    out = {}
    for folder in folders:
        found = results.Results(pathlib.Path(folder) / "results.jsonl")
        for (model, _, _, _, protocol, codec, variant), (rows, _) in found.groups().items():
            made = scores.summarise(rows)
            each = [scores.summarise([r]).dppl for r in sorted(rows, key=lambda r: r.passage)]
            out.setdefault((model, variant), {}).setdefault(codec, {})[protocol] = (made, each)
    return out


def lines(gathered, order=None):
    """Markdown. order: settings first in this order."""
    for (model, variant), by_setting in gathered.items():
        protocols = [p for p in ("prefix", "whole", "in-forward")
                     if any(p in of for of in by_setting.values())]
        yield f"{model}, {variant}"
        yield ""
        yield "| setting | ratio | " + " | ".join(
            f"{p}: dPPL % (each passage) | KLD | top-1 %" for p in protocols) + " |"
        yield "|---|---|" + "---|---|---|" * len(protocols)
        known = [n for n in order or [] if n in by_setting]
        for name in known + [n for n in by_setting if n not in known]:
            of = by_setting[name]
            first = next(of[p][0] for p in protocols if p in of)
            cells = [name, f"{first.ratio:.2f}"]
            for p in protocols:
                if p not in of:
                    cells += ["", "", ""]
                    continue
                s, each = of[p]
                cells += [f"{s.dppl:+,.1f} (" + ", ".join(f"{x:+,.1f}" for x in each) + ")",
                          f"{s.kld:.3f}", f"{s.top1:.1f}"]
            yield "| " + " | ".join(cells) + " |"
        yield ""
