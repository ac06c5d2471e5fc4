"""A report as one HTML page, without scripts or outside files: pictures first."""

import html

from bench.quality import curves, markdown, needles

e = html.escape


def page(report):
    body = ["<h1>What compression costs the model</h1>"]
    pictures = rate_pictures(report)
    for model, svg in pictures:
        body.append(f"<h2>{e(model)}</h2>{svg}")
    if pictures:
        body.append("<p>Each point is one quality of one codec, by the prefix protocol: further "
                    "right is smaller, lower is closer to the model's own output. Filled: "
                    "ACCEPT. The dashed line is the bar of .0105 nats a token; points at the "
                    "bottom lie at or below .00001.</p>")
    body.append("<h1>The numbers</h1>")
    for model in markdown.models(report):
        body.append(f"<h2>{e(model)}</h2>")
        for table in report["tables"]:
            if table["model"] == model:
                body.append(_section(table))
        rows = [r for r in report["needles"] if r["model"] == model]
        if rows:
            lines = [[c.strip() for c in line.strip("|").split("|")]
                     for line in needles.table(rows)]
            body.append("<h3>Needles</h3>" + _table(lines[0], lines[2:]))
        if model in report["missing"]:
            body.append(f"<p>{e(markdown.missing(report, model))}</p>")
    runs = "".join(f"<li><code>{e(command)}</code>: {e(where)}</li>"
                   for command, where in markdown.provenance(report))
    return ("<!doctype html><html lang=en><meta charset=utf-8>"
            "<meta name=viewport content='width=device-width'><title>kvcask quality</title>"
            f"<style>{_STYLE}</style>" + "".join(body)
            + f"<h2>How it was measured</h2><ul>{runs}</ul></html>\n")


def rate_pictures(report):
    """[(model, svg)]: the curves of the headline tables."""
    out = []
    for table in report["tables"]:
        points = [(r["codec"], r["ratio"], r["kld"], r["kld_half"], r["verdict"])
                  for r in table["rows"] if r["variant"] == "kv" and "+" not in r["codec"]
                  and r["stored_bytes"] and r["codec"] not in ("identity", "recompute")]
        # where there is no plan, tables of every protocol are headlines of their own
        if points and table["step"] == "prefix":
            out.append((table["model"], curves.rate_quality(points)))
        elif points and table["step"] == "":
            out.append((f"{table['model']}, {markdown.title(table)}",
                        curves.rate_quality(points)))
    return out


def _section(table):
    parts = [f"<h3>{e(markdown.title(table))}</h3>", _table(
        markdown.columns(table), [markdown.cells(table, r) for r in markdown.listed(table)])]
    for kind in ("layer", "group"):
        alone = [(r["codec"], int(r["variant"].split(":")[1]), r["kld"]) for r in table["rows"]
                 if r["variant"].startswith(kind + ":")]
        if alone:
            parts.append(f"<h4>One {kind} alone</h4>" + curves.layer_profile(alone, kind))
    parts += [f"<p>{e(text)}</p>" for text in markdown.remarks(table)]
    kinds = markdown.by_kind(table)
    if kinds:
        parts.append("<h4>KLD (dPPL %) by kind of text</h4>"
                     + _table(["codec", *kinds[0]], kinds[1]))
    return "".join(parts)


def _table(head, rows):
    """Cells that are a verdict get its colour, sentences go left, figures right."""
    def cell(text):
        if text in ("ACCEPT", "MARGINAL", "REJECT"):
            return f"<td class={text.lower()}>{text}</td>"
        return f"<td{' class=words' if len(text) > 24 else ''}>{e(text)}</td>"
    return ("<div class=wide><table><tr>" + "".join(f"<th>{e(c)}</th>" for c in head) + "</tr>"
            + "".join("<tr>" + "".join(map(cell, r)) + "</tr>" for r in rows) + "</table></div>")


_STYLE = """
body{font:15px/1.45 sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:13px}
.wide{overflow-x:auto;margin:.5rem 0 1rem}
th,td{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}
th:first-child,td:first-child,.words{text-align:left}th:last-child{text-align:left}
h2{margin-top:2rem}h3{margin-top:1.5rem}
td.reject{color:#b3261e}td.accept{color:#1b6e3c}td.marginal{color:#8a6d00}
svg{max-width:100%;height:auto}code{font-size:12px;overflow-wrap:anywhere}
"""
