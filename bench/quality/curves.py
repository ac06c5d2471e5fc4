"""Pictures of a report as SVG, drawn here: no script, no library, no outside file."""

import html
import math
import re

_W, _H, _LEFT, _TOP, _RIGHT, _BOTTOM = 1040, 400, 70, 16, 430, 46
_COLOURS = ("#1f5fa8", "#b3541e", "#2e7d4f", "#7a3e9d", "#8a6d00", "#b3261e", "#3b7f8c")
_FLOOR = 1e-5  # KLDs below it, zero among them, are drawn here
_LIMIT = 0.0105
_QUALITY = re.compile("-(near_lossless|balanced|compact)")


def rate_quality(points):
    """KLD (log) over ratio (log) of (codec, ratio, kld, kld_half or None, verdict); one
    codec's qualities (with the same profile) are joined by a line."""
    if not points:
        return ""
    x = _log_axis([p[1] for p in points] + [1, 8], _LEFT, _W - _RIGHT)
    y = _log_axis([max(p[2], _FLOOR) for p in points] + [_LIMIT * 2, _FLOOR * 10],
                  _H - _BOTTOM, _TOP)
    parts = _frame(x, y, "ratio against bf16", "KLD, nats a token")
    at = y(_LIMIT)
    parts.append(f'<line x1="{_LEFT}" x2="{_W - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}" '
                 'stroke="#b3261e" stroke-dasharray="5 4"/>'
                 f'<text x="{_LEFT + 6}" y="{at - 5:.1f}" '
                 'fill="#b3261e">.0105</text>')
    families = {}
    for p in points:
        families.setdefault(_QUALITY.sub("", p[0]), []).append(p)
    legend = _TOP + 12
    for i, (name, members) in enumerate(families.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        members.sort(key=lambda p: p[1])
        line = " ".join(f"{x(p[1]):.1f},{y(max(p[2], _FLOOR)):.1f}" for p in members)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" '
                     'stroke-opacity=".5"/>')
        for codec, ratio, kld, half, verdict in members:
            cx, cy = x(ratio), y(max(kld, _FLOOR))
            if half:
                low, high = y(max(kld - half, _FLOOR)), y(max(kld + half, _FLOOR))
                parts.append(f'<line x1="{cx:.1f}" x2="{cx:.1f}" y1="{low:.1f}" '
                             f'y2="{high:.1f}" stroke="{colour}"/>')
            fill = colour if verdict == "ACCEPT" else "white"
            parts.append(f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="5" fill="{fill}" '
                         f'stroke="{colour}" stroke-width="2"><title>{html.escape(codec)}: '
                         f'{ratio:.2f}x, KLD {kld:.5f}, {verdict}</title></circle>')
            parts.append(f'<circle cx="{_W - _RIGHT + 16}" cy="{legend - 4}" r="4" '
                         f'fill="{fill}" stroke="{colour}" stroke-width="2"/>'
                         f'<text x="{_W - _RIGHT + 26}" y="{legend}">{html.escape(codec)}'
                         f' {ratio:.2f}x</text>')
            legend += 17
    return _svg(parts, "KLD over compression ratio; filled: ACCEPT",
                max(_H, legend))


def layer_profile(points, what="layer"):
    """KLD (log) over the layer of (codec, layer, kld): what each layer (`what`) costs alone."""
    x_last = max(p[1] for p in points) or 1
    x = lambda v: _LEFT + (_W - _RIGHT - _LEFT) * v / x_last
    x.ticks = list(range(0, x_last + 1, max(1, x_last // 10)))
    y = _log_axis([max(p[2], _FLOOR) for p in points] + [_FLOOR * 10], _H - _BOTTOM, _TOP)
    parts = _frame(x, y, what, "KLD, nats a token")
    for i, codec in enumerate(dict.fromkeys(p[0] for p in points)):
        colour = _COLOURS[i % len(_COLOURS)]
        line = " ".join(f"{x(p[1]):.1f},{y(max(p[2], _FLOOR)):.1f}"
                        for p in sorted(points, key=lambda p: p[1]) if p[0] == codec)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}"/>'
                     f'<text x="{_W - _RIGHT + 10}" y="{_TOP + 12 + 17 * i}" '
                     f'fill="{colour}">{html.escape(codec)}</text>')
    return _svg(parts, f"KLD of one {what} alone", _H)


def _log_axis(values, begin, end):
    """A function value -> place, on a log scale over `values`, with .ticks."""
    low, high = math.log10(min(values)), math.log10(max(values))
    low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)

    def place(v):
        return begin + (end - begin) * (math.log10(v) - low) / (high - low)

    steps = (1, 1.5, 2, 3, 4, 6, 8) if high - low < 2 else (1,)
    place.ticks = [s * 10.0 ** d for d in range(math.floor(low), math.ceil(high) + 1)
                   for s in steps if low <= math.log10(s * 10.0 ** d) <= high]
    return place


def _frame(x, y, x_title, y_title):
    parts = []
    for v in x.ticks:
        parts.append(f'<line x1="{x(v):.1f}" x2="{x(v):.1f}" y1="{_TOP}" y2="{_H - _BOTTOM}" '
                     f'stroke="#e4e4e4"/><text x="{x(v):.1f}" y="{_H - _BOTTOM + 16}" '
                     f'text-anchor="middle">{v:g}</text>')
    for v in y.ticks:
        parts.append(f'<line x1="{_LEFT}" x2="{_W - _RIGHT}" y1="{y(v):.1f}" y2="{y(v):.1f}" '
                     f'stroke="#e4e4e4"/><text x="{_LEFT - 6}" y="{y(v) + 4:.1f}" '
                     f'text-anchor="end">{v:g}</text>')
    middle = (_LEFT + _W - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_H - 8}" text-anchor="middle">{x_title}</text>'
                 f'<text transform="translate(14 {(_TOP + _H - _BOTTOM) / 2}) rotate(-90)" '
                 f'text-anchor="middle">{y_title}</text>')
    return parts


def _svg(parts, label, height):
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{_W}" height="{height}" '
            f'viewBox="0 0 {_W} {height}" role="img" aria-label="{label}" '
            'font-family="sans-serif" font-size="12">' + "".join(parts) + "</svg>")
