#!/usr/bin/env python3
"""Cuts the first tokens of a cache file into a smaller one: how the caches here were made.

    examples/cut_cache.py IN.safetensors OUT.safetensors TOKENS [KEY=VALUE ...]

Needs nothing but Python. KEY=VALUE adds to the metadata.
"""

import json
import struct
import sys


def main():
    source, target, tokens = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with open(source, "rb") as f:
        size, = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(size))
        data = f.read()
    metadata = header.pop("__metadata__")
    if not 0 < tokens <= int(metadata["tokens"]):
        sys.exit(f"{source} has {metadata['tokens']} tokens, asked for {tokens}")
    metadata["tokens"] = str(tokens)
    metadata.update(pair.split("=", 1) for pair in sys.argv[4:])

    out, body = {"__metadata__": metadata}, b""
    for name, tensor in header.items():
        begin, end = tensor["data_offsets"]
        shape, raw = list(tensor["shape"]), data[begin:end]
        axis = 0 if name == "token_ids" else 1  # [tokens] or [kv_heads, tokens, head_dim]
        runs = shape[0] if axis else 1          # a run: one head's tokens
        row = len(raw) // runs // shape[axis]   # bytes of a token in a run
        stride = row * shape[axis]
        cut = b"".join(raw[i * stride:i * stride + row * tokens] for i in range(runs))
        shape[axis] = tokens
        out[name] = {"dtype": tensor["dtype"], "shape": shape,
                     "data_offsets": [len(body), len(body) + len(cut)]}
        body += cut
    text = json.dumps(out, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(target, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + body)


main()
