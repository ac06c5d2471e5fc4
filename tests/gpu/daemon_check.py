#!/usr/bin/env python3
"""A daemon whose codecs run on a device, beside one on the CPU: the same cache is put and got
through both over a unix socket, and compared.

    daemon_check.py KVCASKD KVCASK EXAMPLES [--emulated] [CODEC...]

Prints what `stat` says of both. Ends with 1 when the device was not used, was lost, or its fklt is
another than the CPU's in ratio, predicted KLD or error, or another codec not the CPU's bit for bit.
Then a daemon whose tier is smaller than what is put: it keeps its budget, all is read back. With
--emulated (KVCASKD runs on device/emulation) also one whose device is lost between reads.
"""
import json
import os
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

    def __init__(self, binary, kvcask, backend, work, budget="64MiB", name=None, env=()):
        tier = ["--gpu-budget", budget] if backend == "cuda" else []
        name = name or backend
        self.kvcask, self.address = kvcask, f"unix:{work}/{name}.socket"
        self.process = subprocess.Popen(
            [binary, "--backend", backend, "--listen", self.address, "--metrics", "127.0.0.1:0",
             *tier],
            stdout=subprocess.PIPE, stderr=open(f"{work}/{name}.log", "w"), text=True,
            env={**os.environ, **dict(env)})
        for line in self.process.stdout:
            print(f"  {line.strip()}")
            if line.startswith("metrics"):
                self.metrics = line.split()[1]
            if line.startswith("listening"):
                return
        fail(f"the daemon on {backend} did not start: {open(f'{work}/{name}.log').read()}")

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


def same(daemon, session, out, expected):
    daemon("get", "--session", session, "--out", out)
    if pathlib.Path(out).read_bytes() != pathlib.Path(expected).read_bytes():
        fail(f"session {session} is not what the CPU gives")


def check_small_tier(make, cache, work, expected):
    """A tier of 2 MiB, room for one chunk of int8: the others are copied in turn, nothing is lost."""
    budget = 2 << 20
    daemon = make("2MiB", "small")
    stored = 0
    for codec in expected:
        daemon("put", cache, "--session", codec, "--codec", codec)
        stored += daemon("stat", "--session", codec)["stored_bytes"]
        held = daemon("info")["usage"]["gpu_bytes"]
        if not 0 < held <= budget:
            fail(f"{held} bytes in a tier of {budget}")
    if stored <= budget:
        fail(f"{stored} bytes stored fit a tier of {budget}: nothing is evicted")
    for _ in range(2):
        for codec, out in expected.items():
            same(daemon, codec, f"{work}/small.out", out)
            if daemon("info")["usage"]["gpu_bytes"] > budget:
                fail("a read took the tier over its budget")
    evicted, lost = (daemon.metric(f"kvcask_{n}")
                     for n in ("gpu_evicted_chunks_total", "device_lost"))
    print(f"{stored} bytes stored over a tier of {budget}: {evicted:.0f} copies evicted, all read")
    if evicted == 0 or lost:
        fail(f"evicted {evicted}, device lost {lost}")
    daemon.stop()


def check_lost_device(make, cache, work, codec, expected):
    """A device lost between reads: the tier is empty, the CPU reads and writes on."""
    daemon = make("64MiB", "lost", {"KVCASK_EMULATION_LOSES_AFTER": "60"})
    daemon("put", cache, "--session", "a", "--codec", codec)
    stat = daemon("stat", "--session", "a")
    if stat["tier"] != "gpu" or daemon.metric("kvcask_device_lost"):
        fail(f"the device was lost before it was read from: {stat}")
    gets = 0
    while not daemon.metric("kvcask_device_lost"):
        if gets == 200:
            fail("200 reads, and the device is not lost: fewer launches than were asked for")
        same(daemon, "a", f"{work}/lost.out", expected)
        gets += 1
    deadline = time.monotonic() + 60  # it is told a moment later
    while daemon.metric("kvcask_gpu_bytes"):
        if time.monotonic() > deadline:
            fail("a lost device's tier is not empty")
    stat = daemon("stat", "--session", "a")
    if stat["tier"] != "host" or stat["gpu_bytes"]:
        fail(f"stat after the loss: {stat}")
    daemon("put", cache, "--session", "b", "--codec", codec)
    for session in "ab":
        same(daemon, session, f"{work}/lost.out", expected)
    if daemon.metric("kvcask_gpu_bytes"):
        fail("a put after the loss was copied to the device")
    print(f"the device was lost in read {gets}; all is read and put on the CPU")
    daemon.stop()


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    kvcaskd, kvcask, examples = sys.argv[1:4]
    emulated = "--emulated" in sys.argv
    codecs = [a for a in sys.argv[4:] if a != "--emulated"] or list(PRESETS)
    examples = pathlib.Path(examples)
    cache = examples / "smollm2-135m-book-256.safetensors"
    profile = examples / "smollm2-135m-layer.fklt.profile.safetensors"
    expected = {}  # what the CPU gives, of codecs that give the same on the device
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
                if codec != "fklt":
                    expected[codec] = pathlib.Path(f"{work}/cpu.out").rename(f"{work}/{codec}.cpu")
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

        def make(budget, name, env=()):
            return Daemon(kvcaskd, kvcask, "cuda", work, budget, name, env)

        if expected:
            check_small_tier(make, cache, work, expected)
        if expected and emulated:
            codec = next(iter(expected))
            check_lost_device(make, cache, work, codec, expected[codec])
    print("daemon_check: passed")


if __name__ == "__main__":
    main()
