#!/usr/bin/env python3
"""A daemon whose codecs run on a device, beside one on the CPU: the same cache is put and got
through both over a unix socket, and compared.

    daemon_check.py KVCASKD KVCASK EXAMPLES [CODEC...]

Prints what `stat` says of both. Ends with 1 when the device was not used, was lost, or its fklt is
another than the CPU's in ratio, predicted KLD or error, or another codec not the CPU's bit for bit.
"""
import json
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

PRESETS = {"int8": [""], "int4": [""], "turbo3": [""],
           "fklt": ["near_lossless", "balanced", "compact"]}
KEYS = ("backend", "tier", "ratio", "predicted_kld", "stored_bytes", "gpu_bytes")


def fail(text):
    sys.exit(f"daemon_check: {text}")


class Daemon:
    """One daemon of a backend, on a socket of its own; on a device with a tier there."""

    def __init__(self, binary, kvcask, backend, work):
        tier = ["--gpu-budget", "64MiB"] if backend == "cuda" else []
        self.kvcask, self.address = kvcask, f"unix:{work}/{backend}.socket"
        self.process = subprocess.Popen(
            [binary, "--backend", backend, "--listen", self.address, "--metrics", "127.0.0.1:0",
             *tier],
            stdout=subprocess.PIPE, stderr=open(f"{work}/{backend}.log", "w"), text=True)
        for line in self.process.stdout:
            print(f"  {line.strip()}")
            if line.startswith("metrics"):
                self.metrics = line.split()[1]
            if line.startswith("listening"):
                return
        fail(f"the daemon on {backend} did not start: {open(f'{work}/{backend}.log').read()}")

    def __call__(self, *args, ok=(0,)):
        result = subprocess.run([self.kvcask, *map(str, args), "--server", self.address, "--json"],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if result.returncode not in ok:
            fail(f"kvcask {' '.join(map(str, args))}: {result.stderr.strip()}")
        return json.loads(result.stdout)

    def metric(self, name):
        text = urllib.request.urlopen(self.metrics).read().decode()
        return float(re.search(rf"^{name}(?:{{.*}})? (\S+)$", text, re.M)[1])

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        if self.process.wait(60) != 0:
            fail(f"the daemon ended with {self.process.returncode}")


def put_and_get(daemon, cache, session, extra, out):
    """What stat, diff and the clock say of one session."""
    start = time.monotonic()
    daemon("put", cache, "--session", session, *extra)
    put = time.monotonic() - start
    start = time.monotonic()
    daemon("get", "--session", session, "--out", out)
    got = time.monotonic() - start
    stat = daemon("stat", "--session", session)
    difference = subprocess.run([daemon.kvcask, "diff", cache, out, "--json"],
                                stdout=subprocess.PIPE, text=True)
    if difference.returncode not in (0, 4):
        fail("diff failed")
    rms = {k: v["relative_rms"] for k, v in json.loads(difference.stdout)["streams"].items()}
    return stat, rms, put, got


def near(a, b, part):
    return abs(a - b) <= part * max(abs(a), abs(b)) + 1e-9


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    kvcaskd, kvcask, examples = sys.argv[1:4]
    codecs = sys.argv[4:] or list(PRESETS)
    examples = pathlib.Path(examples)
    cache = examples / "smollm2-135m-book-256.safetensors"
    profile = examples / "smollm2-135m-layer.fklt.profile.safetensors"
    with tempfile.TemporaryDirectory(prefix="kvg.", dir="/tmp") as work:
        daemons = {b: Daemon(kvcaskd, kvcask, b, work) for b in ("cuda", "cpu")}
        info = daemons["cuda"]("info")
        if info["backend"] != "cuda":
            fail(f"the daemon's backend is {info['backend']}")
        for codec in codecs:
            for preset in PRESETS[codec]:
                extra = ["--codec", codec]
                if codec == "fklt":
                    extra += ["--profile", profile, "--quality", preset]
                seen = {}
                for backend, daemon in daemons.items():
                    out = f"{work}/{backend}.out"
                    stat, rms, put, got = put_and_get(daemon, cache, f"{codec}{preset}", extra, out)
                    seen[backend] = (stat, rms)
                    print(f"{codec} {preset} on {backend}: put {put * 1e3:.0f} ms, get "
                          f"{got * 1e3:.0f} ms, relative RMS {rms}, "
                          f"stat {json.dumps({k: stat[k] for k in KEYS})}", flush=True)
                    if stat["backend"] != backend:
                        fail(f"stat names the backend {stat['backend']}, not {backend}")
                    tier = "gpu" if backend == "cuda" else "host"
                    if stat["tier"] != tier or \
                            stat["gpu_bytes"] != (stat["stored_bytes"] if tier == "gpu" else 0):
                        fail(f"stat names the tier {stat['tier']}, not {tier}: {stat}")
                (gpu, gpu_rms), (cpu, cpu_rms) = seen["cuda"], seen["cpu"]
                if codec != "fklt" and (pathlib.Path(f"{work}/cuda.out").read_bytes() !=
                                        pathlib.Path(f"{work}/cpu.out").read_bytes()):
                    fail(f"{codec} differs from the CPU's")
                if not near(gpu["ratio"], cpu["ratio"], .01) or \
                        not near(gpu["predicted_kld"], cpu["predicted_kld"], .03) or \
                        any(not near(gpu_rms[s], cpu_rms[s], .03) for s in cpu_rms):
                    fail(f"{codec} {preset} is not the CPU's")
        info = daemons["cuda"]("info")
        if info["backend"] != "cuda":
            fail(f"the device was lost: {info}")
        if not 0 < info["usage"]["gpu_bytes"] <= info["limits"]["gpu_budget_bytes"] == 64 << 20:
            fail(f"the tier on the device: {info['usage']}, {info['limits']}")
        hits, misses = (daemons["cuda"].metric(f"kvcask_gpu_{n}_total") for n in ("hits", "misses"))
        print(f"reads that found a chunk on the device: {hits:.0f}, that did not: {misses:.0f}")
        if hits == 0 or misses > 0:
            fail("what was put was not read on the device")
        daemons["cuda"]("rm", f"{codecs[0]}{PRESETS[codecs[0]][0]}")
        left = daemons["cuda"]("info")["usage"]["gpu_bytes"]
        if left >= info["usage"]["gpu_bytes"]:
            fail(f"a deleted session's copies stay on the device: {left} bytes")
        for daemon in daemons.values():
            daemon.stop()
    print("daemon_check: passed")


if __name__ == "__main__":
    main()
