"""Signal to noise of what came back, layer by layer and stream by stream, of any codec on any
cache file. The stages of a codec are codecs here: reference-fklt/STAGE, say; those of Kakeya
come from its own command (bench.kakeya stages).

Signal to noise is a ratio of powers, of what varies: about 1 / (1 - correlation^2).
"""

import dataclasses
import pathlib

import numpy as np
import safetensors.numpy

from tools.models import cache as cache_files


@dataclasses.dataclass(frozen=True)
class Row:
    """One stream ("k": as engines hold it, after RoPE; "v") of one layer. snr is inf and
    correlation 1 where nothing changed."""

    codec: str
    layer: int
    stream: str
    mse: float
    snr: float
    correlation: float
    relative_l2: float


class StoredConfig:
    """Of a cache file, what a Roundtrip asks of a model's config."""

    def __init__(self, stored):
        self.kv_heads, _, self.head_dim = stored.layers[0][0].shape
        self.layers = [None] * len(stored.layers)
        self.name = stored.metadata.get("model", "")
        self._metadata = stored.metadata

    def metadata(self, tokens, first_position=0):
        return {**self._metadata, "tokens": str(tokens), "first_position": str(first_position)}


def compare(original, decoded):
    """(mse, snr, correlation, relative L2) of two arrays of one shape, in float64."""
    a, b = (np.asarray(x, np.float64).ravel() for x in (original, decoded))
    error, varying, power = ((a - b) ** 2).sum(), ((a - a.mean()) ** 2).sum(), (a ** 2).sum()
    other = ((b - b.mean()) ** 2).sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = ((a - a.mean()) * (b - b.mean())).sum() / np.sqrt(varying * other)
        return (error / a.size, varying / error if error else float("inf"),
                float(np.clip(np.nan_to_num(correlation), -1, 1)) if error else 1.0,
                float(np.sqrt(error / power)) if power else 0.0)


def rows(name, clean, decoded):
    """Row of every layer and stream; clean, decoded: per layer (k, v)."""
    out = []
    for layer, (a, b) in enumerate(zip(clean, decoded, strict=True)):
        for stream, x, y in zip("kv", a, b):
            out.append(Row(name, layer, stream, *compare(x.float().numpy(), y.float().numpy())))
    return out


def audit(path, codecs, dump=None, tokens=None):
    """(Rows of all codecs, {codec name: ratio}) on a cache file. dump: a folder for one file a
    codec, LAYER's and stream's heads and tokens as the rows of one F32 matrix. tokens: rows are of
    the first so many alone, as for a codec that keeps the last ones exact; ratios are of all."""
    stored = cache_files.read(path)
    config, ids = StoredConfig(stored), stored.token_ids.tolist()
    found, ratios = [], {}
    for codec in codecs:
        decoded = codec(config, stored.layers, ids)
        found += rows(codec.name, _first(stored.layers, tokens), _first(decoded.layers, tokens))
        ratios[codec.name] = decoded.raw_bytes / decoded.stored_bytes
        if dump:
            write_matrices(pathlib.Path(dump) / f"{file_name(codec.name)}.safetensors",
                           decoded.layers)
    if dump:
        write_matrices(pathlib.Path(dump) / "original.safetensors", stored.layers)
    return found, ratios


def _first(layers, tokens):
    return [tuple(x[:, :tokens] for x in layer) for layer in layers]


def file_name(codec):
    return "".join(c if c.isalnum() or c in "-." else "-" for c in codec)


def write_matrices(path, layers):
    """k.LL and v.LL as [heads * tokens, head_dim] float32."""
    safetensors.numpy.save_file(
        {f"{stream}.{i:02d}": np.ascontiguousarray(x.float().reshape(-1, x.shape[-1]).numpy())
         for i, layer in enumerate(layers) for stream, x in zip("kv", layer)}, str(path))


def markdown(found, ratios):
    """Lines: a table for each stream, a line a layer, a column a codec."""
    names = list(ratios)
    for stream in "kv":
        yield f"{stream.upper()}: signal to noise (correlation)"
        yield ""
        yield "| layer | " + " | ".join(f"{n}, {ratios[n]:.2f}x" for n in names) + " |"
        yield "|---|" + "---|" * len(names)
        by_layer = {}
        for r in found:
            if r.stream == stream:
                by_layer.setdefault(r.layer, {})[r.codec] = f"{r.snr:.1f} ({r.correlation:.4f})"
        for layer, cells in by_layer.items():
            yield f"| {layer} | " + " | ".join(cells.get(n, "") for n in names) + " |"
        yield ""
    if len(names) > 1:
        yield f"MSE as a share of {names[0]}'s: median of the layers (least to most), below in"
        yield ""
        yield "| codec | K | V |"
        yield "|---|---|---|"
        for name in names[1:]:
            yield f"| {name} | " + " | ".join(_share(found, name, names[0], s) for s in "kv") + " |"
        yield ""


def _share(found, name, base, stream):
    """One codec's MSE by another's, layer by layer, in words. Of layers that the base keeps
    exact nothing can be said."""
    mse = {(r.codec, r.layer): r.mse for r in found if r.stream == stream}
    shares = [mse[name, layer] / of for (codec, layer), of in mse.items() if codec == base and of]
    if not shares:
        return "exact"
    return (f"{np.median(shares):.3f} ({min(shares):.3f} to {max(shares):.3f}), "
            f"{sum(x < 1 for x in shares)} of {len(shares)}")
