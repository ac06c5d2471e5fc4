"""The one seam between the harness and codecs: a cache goes out, and comes back.

A Roundtrip is called with the cache of one sequence, per layer (k, v) of [kv_heads, tokens,
head_dim] bf16, K after RoPE, and gives back the same shapes and what storing them took. It
may be called from several threads. Its attributes:

name         what reports call it
lossless     it promises the same bits back
layer_local  it codes layers apart, and has one_layer(config, layer, k, v, token_ids), for the
             in-forward protocol
bind(model)  optional: called once before the first cache
groups(config)  optional: [{(layer, "k" | "v", head)}], what it codes together
"""

import dataclasses
import hashlib
import json
import pathlib
import shutil
import subprocess
import tempfile
import uuid

import torch

from tools.models import cache as cache_files
from tools.models import forward


class RoundtripError(RuntimeError):
    """The codec or the daemon failed; the message is theirs."""


@dataclasses.dataclass
class Decoded:
    """layers as they went in; raw_bytes: 2 an element; stored_bytes: all that was kept."""

    layers: list
    raw_bytes: int
    stored_bytes: int


class Identity:
    """bf16 in, the same bf16 out: what it scores is the harness's own error."""

    name = "identity"
    lossless = True
    layer_local = True  # layers are coded apart, so the in-forward protocol applies

    def __call__(self, config, layers, token_ids):
        raw = raw_bytes(layers)
        return Decoded([(k.clone(), v.clone()) for k, v in layers], raw, raw)

    def one_layer(self, config, layer, k, v, token_ids):
        return self(config, [(k, v)], token_ids)


class ScalarReference:
    """int8 with one fp32 scale a token and head, in process: the noise floor, and a codec
    for tests and for the in-forward protocol."""

    lossless = False
    layer_local = True

    def __init__(self, bits=8):
        self.name = f"reference-int{bits}"
        self._bits = bits

    def __call__(self, config, layers, token_ids):
        top = 2 ** (self._bits - 1) - 1
        out, stored = [], 0
        for pair in layers:
            decoded = []
            for x in pair:
                f = x.float()
                scale = f.abs().amax(-1, keepdim=True).clamp(min=1e-30) / top
                code = (f / scale).round().clamp(-top, top)
                decoded.append((code * scale).to(torch.bfloat16))
                stored += code.numel() * self._bits // 8 + scale.numel() * 4
            out.append(tuple(decoded))
        return Decoded(out, raw_bytes(layers), stored)

    def one_layer(self, config, layer, k, v, token_ids):
        return self(config, [(k, v)], token_ids)


class Daemon:
    """A kvcask daemon, driven by the kvcask command: put, stat, get, rm.

    codec "" leaves the choice to the profile. The bytes are the daemon's own counters of
    the session. Each call is a session of its own, deleted afterwards.
    """

    layer_local = False

    def __init__(self, server, codec, quality="", profile="", command="kvcask", lossless=None,
                 label=""):
        self.name = daemon_name(codec, quality, label or profile)
        self.lossless = codec == "raw" if lossless is None else lossless
        self._server, self._codec, self._quality = server, codec, quality
        self._command = command
        if profile:  # once; the puts name it by its fingerprint
            self._run("profile", "add", profile)
            with open(profile, "rb") as f:
                profile = hashlib.sha256(f.read()).hexdigest()
        self._profile = profile

    def __call__(self, config, layers, token_ids):
        session = f"kvcask-eval-{uuid.uuid4().hex}"
        with tempfile.TemporaryDirectory(prefix="kvcask-eval-") as tmp:
            sent, got = pathlib.Path(tmp) / "in.safetensors", pathlib.Path(tmp) / "out.safetensors"
            cache_files.write(sent, config, layers, token_ids)
            options = [x for flag, value in (("--codec", self._codec),
                                             ("--quality", self._quality),
                                             ("--profile", self._profile)) if value
                       for x in (flag, value)]
            # a salt of its own: equal prefixes of other runs must not be shared
            self._run("put", str(sent), "--session", session, "--extra-key", session, *options)
            try:
                stat = json.loads(self._run("stat", "--session", session, "--json"))
                self._run("get", "--session", session, "--out", str(got))
                back = cache_files.read(got)
            finally:
                self._run("rm", session)
        raw = raw_bytes(layers)
        if int(stat["raw_bytes"]) != raw:
            raise RoundtripError(f"{session}: the daemon counts {stat['raw_bytes']} raw bytes, "
                                 f"expected {raw}")
        return Decoded(back.layers, raw, int(stat["stored_bytes"]))

    def _run(self, *args):
        if not shutil.which(self._command):
            raise RoundtripError(f"no command {self._command!r} (--kvcask says where it is)")
        done = subprocess.run([self._command, "--server", self._server, *args],
                              capture_output=True, text=True, timeout=600, check=False)
        if done.returncode != 0:
            raise RoundtripError(f"kvcask {args[0]}: exit code {done.returncode}: "
                                 + (done.stderr.strip() or done.stdout.strip()))
        return done.stdout


class Fault:
    """A Roundtrip that goes wrong in one place, to see that the harness notices.

    shifted-key: K of head 0 of the middle layer is turned on by one position.
    scaled-value: V of the middle layer times 1.05.
    wrong-mean: K of head 0 of the middle layer, un-rotated, moved by its own mean over
    tokens. (Moving all rotated keys by one vector would change no softmax.)
    """

    KINDS = ("shifted-key", "scaled-value", "wrong-mean")
    layer_local = False

    def __init__(self, inner, kind):
        if kind not in self.KINDS:
            raise ValueError(f"fault {kind!r} is not one of {self.KINDS}")
        self.name = f"{inner.name}+{kind}"
        self.lossless = inner.lossless
        self._inner, self._kind = inner, kind
        if hasattr(inner, "bind"):
            self.bind = inner.bind

    def __call__(self, config, layers, token_ids):
        decoded = self._inner(config, layers, token_ids)
        at = len(decoded.layers) // 2
        k, v = (x.clone() for x in decoded.layers[at])
        if self._kind == "shifted-key":
            angle = self._inv_freq(config, at, k.device)
            k[0] = forward.rotate(k[0].float(), angle.cos(), angle.sin()).to(k.dtype)
        elif self._kind == "scaled-value":
            v = (v.float() * 1.05).to(v.dtype)
        else:
            positions = torch.arange(k.shape[1], device=k.device, dtype=torch.float32)
            angle = positions[:, None] * self._inv_freq(config, at, k.device)
            plain = forward.unrotate(k[0].float(), angle.cos(), angle.sin())
            k[0] = forward.rotate(plain + plain.mean(0), angle.cos(), angle.sin()).to(k.dtype)
        decoded.layers[at] = (k, v)
        return decoded

    @staticmethod
    def _inv_freq(config, layer, device):
        return torch.tensor(config.layers[layer].rope.inv_freq(), device=device)[None]


@dataclasses.dataclass(frozen=True)
class Served:
    """One codec as the daemon describes it."""

    needs_profile: bool
    lossless: bool
    qualities: tuple


def served(server, command="kvcask"):
    """{codec name: Served} by the kvcask command."""
    done = subprocess.run([command, "--server", server, "codecs", "--json"],
                          capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise RoundtripError(f"kvcask codecs: {done.stderr.strip()}")
    return {c["name"]: Served(bool(c["needs_profile"]), bool(c["lossless"]),
                              tuple(c["qualities"])) for c in json.loads(done.stdout)}


def daemon_name(codec, quality, profile):
    """What reports call a codec of the daemon: CODEC[-QUALITY][@PROFILE]."""
    name = "-".join(x for x in (codec or "profile", quality) if x)
    return f"{name}@{pathlib.Path(profile).stem}" if profile else name


def raw_bytes(layers):
    """Two bytes an element of K and V."""
    return sum(2 * (k.numel() + v.numel()) for k, v in layers)
