#!/usr/bin/env python3
"""What others do on a GPU with the same elements: nvCOMP's ANS, and vLLM's TurboQuant (Triton).

    peers.py CACHE.safetensors [--mib N] [--nvcomp libnvcomp.so.6] [--vllm FOLDER]

CACHE: `k.LL` and `v.LL` of [heads][tokens][head_dim] in bf16, repeated up to N MiB (default 1024) of
bf16. Needs torch (and its Triton) with CUDA. A peer that is not given is left out:

  --nvcomp  the library of the PyPI package nvidia-libnvcomp-cu13 (lib64/libnvcomp.so.6)
  --vllm    a folder with `vllm/`: the unpacked wheel, or of it only
            v1/attention/ops/triton_turboquant_{store,decode}.py and
            model_executor/layers/quantization/turboquant/centroids.py

A row: GB/s of the bf16 side (10^9 bytes) each way, by events on the stream, medians of 15 rounds;
ratio; relative RMS error of what comes back (nvCOMP's must be 0, or the program ends with status 1).
nvCOMP gets chunks of 64 KiB; `int8` rows are its ANS on int8 with a scale a row of head_dim, without
the time of quantising.
"""

import argparse
import ctypes
import importlib
import json
import math
import statistics
import struct
import sys
import types

import torch

ROUNDS = 15
CHUNK = 64 << 10


def read_cache(path: str) -> dict[str, torch.Tensor]:
    """Keys and values of a safetensors file, by name."""
    with open(path, "rb") as f:
        (size,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(size))
        data = bytearray(f.read())
    out = {}
    for name, t in header.items():
        if not name.startswith(("k.", "v.")):
            continue
        if t["dtype"] != "BF16":
            sys.exit(f"peers.py: {path}: {name} is {t['dtype']}; expected BF16")
        begin, end = t["data_offsets"]
        out[name] = torch.frombuffer(data, dtype=torch.bfloat16, offset=begin,
                                     count=(end - begin) // 2).reshape(t["shape"])
    return out


def seconds(work) -> float:
    """Median of ROUNDS, of the device's time."""
    times = []
    for r in range(ROUNDS + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        if r >= 2:
            times.append(begin.elapsed_time(end) * 1e-3)
    return statistics.median(times)


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Relative RMS error, in pieces: there is little memory for floats of all."""
    error = squares = 0.0
    for g, w in zip(got.reshape(-1).split(1 << 26), want.reshape(-1).split(1 << 26)):
        error += float((g.float() - w.float()).square().sum(dtype=torch.float64))
        squares += float(w.float().square().sum(dtype=torch.float64))
    return math.sqrt(error / squares)


def row(name: str, bf16_bytes: int, encode: float, decode: float, ratio: float,
        error: float) -> None:
    print(f"{name:<28} {bf16_bytes / 2**20:7.0f} MiB  ratio {ratio:5.2f}  error {error:.4f}  "
          f"encode {bf16_bytes / encode * 1e-9:7.1f} GB/s  decode "
          f"{bf16_bytes / decode * 1e-9:7.1f} GB/s", flush=True)


class Ans:
    """nvCOMP's batched ANS (nvcomp/ans.h, version 6). Options are passed by value."""

    class CompressOptions(ctypes.Structure):
        _fields_ = [("type", ctypes.c_int), ("data_type", ctypes.c_int),
                    ("rest", ctypes.c_ubyte * 56)]

    class DecompressOptions(ctypes.Structure):
        _fields_ = [("backend", ctypes.c_int), ("data_type", ctypes.c_int),
                    ("rest", ctypes.c_ubyte * 56)]

    CHAR, FLOAT16, BITS = 0, 10, 0xFF

    def __init__(self, library: str):
        self.lib = ctypes.CDLL(library)

    def call(self, name: str, *arguments) -> None:
        status = getattr(self.lib, "nvcompBatchedANS" + name)(*arguments)
        if status != 0:
            sys.exit(f"peers.py: nvcompBatchedANS{name}: status {status}")

    def run(self, name: str, data: torch.Tensor, data_type: int, bf16_bytes: int,
            error: float) -> None:
        """`data`: bytes on the device, a multiple of CHUNK."""
        chunks, rest = divmod(data.numel(), CHUNK)
        assert rest == 0, f"{data.numel()} bytes"
        size, stream = ctypes.c_size_t, ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        compress = self.CompressOptions(0, data_type)
        decompress = self.DecompressOptions(0, self.BITS)
        most, temp, temp_back = size(), size(), size()
        self.call("CompressGetMaxOutputChunkSize", size(CHUNK), compress, ctypes.byref(most))
        self.call("CompressGetTempSize", size(chunks), size(CHUNK), compress, ctypes.byref(temp),
                  size(data.numel()), stream)
        self.call("DecompressGetTempSize", size(chunks), size(CHUNK), decompress,
                  ctypes.byref(temp_back), size(data.numel()), stream)
        slot = (most.value + 255) // 256 * 256
        out = torch.empty(chunks * slot, dtype=torch.uint8, device="cuda")
        back = torch.empty_like(data)
        work = torch.empty(max(temp.value, temp_back.value, 1), dtype=torch.uint8, device="cuda")

        def pointers(base: torch.Tensor, step: int) -> torch.Tensor:
            return base.data_ptr() + step * torch.arange(chunks, dtype=torch.int64, device="cuda")

        sources, slots, backs = pointers(data, CHUNK), pointers(out, slot), pointers(back, CHUNK)
        whole = torch.full((chunks,), CHUNK, dtype=torch.int64, device="cuda")
        sizes, got = torch.empty_like(whole), torch.empty_like(whole)
        statuses = torch.zeros(chunks, dtype=torch.int32, device="cuda")

        def at(t: torch.Tensor) -> ctypes.c_void_p:
            return ctypes.c_void_p(t.data_ptr())

        encode = seconds(lambda: self.call(
            "CompressAsync", at(sources), at(whole), size(CHUNK), size(chunks), at(work),
            size(work.numel()), at(slots), at(sizes), compress, at(statuses), stream))
        decode = seconds(lambda: self.call(
            "DecompressAsync", at(slots), at(sizes), at(whole), at(got), size(chunks), at(work),
            size(work.numel()), at(backs), decompress, at(statuses), stream))
        if int(statuses.abs().sum()) != 0 or not torch.equal(back, data):
            sys.exit(f"peers.py: {name}: what comes back is not what went in")
        row(name, bf16_bytes, encode, decode, bf16_bytes / int(sizes.sum()), error)


def run_nvcomp(library: str, cache: torch.Tensor) -> None:
    """`cache`: bf16 [rows][head_dim]."""
    ans = Ans(library)
    bf16_bytes = cache.numel() * 2
    ans.run("nvCOMP ANS, bf16", cache.view(torch.uint8).reshape(-1), Ans.FLOAT16, bf16_bytes, 0.0)
    scale = cache.abs().amax(dim=1, keepdim=True).float() / 127
    quantised = torch.round(cache.float() / scale.clamp_min(1e-30)).to(torch.int8)
    error = relative_error(quantised.float() * scale, cache)
    ans.run("nvCOMP ANS, int8", quantised.view(torch.uint8).reshape(-1), Ans.CHAR, bf16_bytes,
            error)


def import_vllm(folder: str):
    """vLLM's two launchers' modules and its centroids, without the package around them."""
    import triton
    import triton.language as tl

    def module(name: str, path: str | None = None, **content):
        m = types.ModuleType(name)
        m.__path__ = [] if path is None else [f"{folder}/{path}"]
        vars(m).update(content)
        sys.modules[name] = m

    module("vllm")
    module("vllm.triton_utils", tl=tl, triton=triton)
    platform = types.SimpleNamespace(
        is_cuda=lambda: True, is_rocm=lambda: False, is_xpu=lambda: False,
        is_cuda_alike=lambda: True,
        get_device_capability=lambda *_: torch.cuda.get_device_capability(),
        has_device_capability=lambda *_, **__: True, is_device_capability=lambda *_, **__: False)
    module("vllm.platforms", current_platform=platform)
    module("vllm.v1")
    module("vllm.v1.attention")
    module("vllm.v1.attention.ops", "vllm/v1/attention/ops")
    module("vllm.v1.attention.ops.triton_decode_attention", _fwd_kernel_stage2=None)
    module("vllm.turboquant", "vllm/model_executor/layers/quantization/turboquant")
    ops = "vllm.v1.attention.ops.triton_turboquant_"
    return (importlib.import_module(ops + "store"), importlib.import_module(ops + "decode"),
            importlib.import_module("vllm.turboquant.centroids"))


def hadamard(d: int) -> torch.Tensor:
    h = torch.ones(1, 1)
    while h.shape[0] < d:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)], 0)
    return (h / math.sqrt(d)).cuda()


def run_vllm(folder: str, keys: torch.Tensor, values: torch.Tensor) -> None:
    """`keys`, `values`: bf16 [tokens][heads][head_dim]."""
    store, decode, centroids_of = import_vllm(folder)
    tokens, heads, d = keys.shape
    block = 128
    tokens = tokens // block * block
    keys, values = keys[:tokens].contiguous(), values[:tokens].contiguous()
    rotation = hadamard(d)
    half_rotation = rotation.half()
    bf16_bytes = 2 * 2 * keys.numel()
    for name, key_bits, value_bits in (("4bit_nc", 4, 4), ("k3v4_nc", 3, 4), ("3bit_nc", 3, 3)):
        centroids = centroids_of.get_centroids(d, key_bits).cuda()
        midpoints = (centroids[1:] + centroids[:-1]) / 2
        key_bytes, value_bytes = math.ceil(d * key_bits / 8), math.ceil(d * value_bits / 8)
        slot = (key_bytes + 2 + value_bytes + 4 + 1) // 2 * 2
        cache = torch.zeros(tokens // block, block, heads, slot, dtype=torch.uint8, device="cuda")
        slots = torch.arange(tokens, dtype=torch.int32, device="cuda")
        table = torch.arange(tokens // block, dtype=torch.int32, device="cuda")[None]
        k_out = torch.empty(1, heads, tokens, d, dtype=torch.float16, device="cuda")
        v_out = torch.empty_like(k_out)

        def put():
            store.triton_turboquant_store(keys, values, cache, slots, rotation, midpoints, key_bits,
                                          key_bytes + 2, value_bits)

        def get():
            decode._tq_full_dequant_kv[(tokens, heads)](
                cache, table, centroids, k_out, v_out, *k_out.stride()[:3], *v_out.stride()[:3],
                *cache.stride()[:3], table.stride(0), HEAD_DIM=d, BLOCK_SIZE=block,
                NUM_KV_HEADS=heads, MSE_BYTES=key_bytes, KPS=key_bytes + 2, VQB=value_bits,
                VAL_DATA_BYTES=value_bytes, MSE_BITS=key_bits, KEY_FP8=0, BLOCK_D=d,
                NORM_CORRECTION=1, FP8_E4B15=0, num_warps=4)
            return k_out.reshape(-1, d) @ half_rotation

        encode_seconds, decode_seconds = seconds(put), seconds(get)
        got = torch.stack([get().reshape(heads, tokens, d), v_out[0]])
        want = torch.stack([keys.transpose(0, 1), values.transpose(0, 1)])
        row(f"vLLM TurboQuant {name}", bf16_bytes, encode_seconds, decode_seconds,
            bf16_bytes / cache.numel(), relative_error(got, want))
        del got, want, cache


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache")
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--nvcomp")
    parser.add_argument("--vllm")
    options = parser.parse_args()
    tensors = read_cache(options.cache)
    keys, values = (
        torch.cat([t.transpose(0, 1) for n, t in sorted(tensors.items()) if n.startswith(s)])
        for s in ("k.", "v."))  # [layers x tokens][heads][head_dim]
    _, heads, d = keys.shape
    # A whole number of chunks, of int8 too: heads x d is a multiple of 32.
    tokens = (options.mib << 20) // (2 * 2 * heads * d) // 1024 * 1024
    repeats = tokens // keys.shape[0] + 1
    keys = keys.cuda().repeat(repeats, 1, 1)[:tokens].contiguous()
    values = values.cuda().repeat(repeats, 1, 1)[:tokens].contiguous()
    both = torch.cat([keys.reshape(-1, d), values.reshape(-1, d)])
    copy = torch.empty_like(both)
    bf16_bytes = both.numel() * 2
    copied = seconds(lambda: copy.copy_(both))
    print(f"{torch.cuda.get_device_name()}: {heads} heads of {d}, copy "
          f"{bf16_bytes / copied * 1e-9:.0f} GB/s", flush=True)
    del copy
    if options.nvcomp:
        run_nvcomp(options.nvcomp, both)
    del both
    if options.vllm:
        run_vllm(options.vllm, keys, values)


if __name__ == "__main__":
    main()
