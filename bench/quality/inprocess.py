"""Roundtrips without a daemon that need the model or a profile: the noise floor of the
model itself, and the fklt codec's reference encoder with its steps one by one.
"""

import dataclasses
import pathlib

import safetensors
import torch

from bench.quality.roundtrip import Decoded, raw_bytes

STAGES = ("transform", "dropped", "quantised", "classes")


class Recompute:
    """Not a codec: the same tokens' cache, computed again in pieces of CHUNK tokens. The
    sums run in another order, so some values round to their bf16 neighbour. What it scores
    is what an engine's own choice of batch shape costs; differences below it mean nothing.
    """

    CHUNK = 384
    name = "recompute"
    lossless = False
    layer_local = False

    def bind(self, model):
        self._model = model

    def __call__(self, config, layers, token_ids):
        ids, cache = torch.tensor(token_ids)[None], None
        with torch.no_grad():
            for begin in range(0, len(token_ids), self.CHUNK):
                cache = self._model.run(ids[:, begin:begin + self.CHUNK], cache,
                                        keep_cache=True).cache
        raw = raw_bytes(layers)
        return Decoded([(k[0].cpu(), v[0].cpu()) for k, v in cache], raw, raw)


class FkltReference:
    """The fklt codec by calibration's plain encoder, on the model's device. Bytes are ideal
    code length with about what framing adds; the daemon's counters are the real ones.

    stage: "" for all of it, else how far it goes, each with the steps before it:
      transform  forward and back with all coordinates, in the profile's 16-bit numbers
      dropped    without the coordinates that a quality leaves out
      quantised  the rest rounded to the middle of equal steps
      classes    with a step of its own for each token, as its sensitivity asks
    (the last step, "", puts centroids in the place of the middles, and codes the sinks, which
    the others leave as they are). Bytes of a stage: 0, since nothing is stored in that form.
    """

    lossless = False

    def __init__(self, profile, quality="balanced", stage=""):
        from tools.calibrate import profile as profiles
        if stage and stage not in STAGES:
            raise ValueError(f"stage {stage!r} is not one of {STAGES}")
        quality = quality or "balanced"
        if quality not in profiles.PRESETS:
            raise ValueError(f"quality {quality!r} is not one of {profiles.PRESETS}")
        self._profile, self._stage = profiles.read(profile), stage
        self._preset = profiles.PRESETS.index(quality)
        self.name = (f"reference-fklt{'/' if stage else ''}{stage}-{quality}"
                     f"@{pathlib.Path(profile).stem}")
        self.layer_local = all(len(self._layers_of(g)) == 1 for g in self._profile.groups)

    def bind(self, model):
        self._model = model
        self._profile = self._profile.to(model.device)
        # torch loads its GPU solvers at the first call, and breaks when two threads make it
        one = torch.ones(1, 1, 1, device=model.device)
        torch.linalg.solve_triangular(one, one, upper=False)

    def __call__(self, config, layers, token_ids):
        return self._roundtrip(self._profile, layers)

    def _roundtrip(self, profile, layers):
        from tools.calibrate import capture
        with torch.no_grad():
            x = capture.cache_to_x(self._model, profile.layout, [
                tuple(y[None].to(self._model.device) for y in pair) for pair in layers])
            y, bits = self._code(profile, x)
            back = capture.x_to_cache(self._model, profile.layout, y)
        return Decoded([tuple(z[0] for z in pair) for pair in back], raw_bytes(layers),
                       int(bits / 8))

    def one_layer(self, config, layer, k, v, token_ids):
        """As __call__ for one layer: Decoded of one (k, v)."""
        p = self._profile
        zero = torch.zeros_like(k)
        mine = [i for i, g in enumerate(p.groups) if self._layers_of(g) == {layer}]
        only = dataclasses.replace(p, groups=[p.groups[i] for i in mine],
                                   transforms=[p.transforms[i] for i in mine],
                                   coefficients=[p.coefficients[i] for i in mine])
        layers = [(k, v) if i == layer else (zero, zero) for i in range(len(config.layers))]
        done = self._roundtrip(only, layers)
        return Decoded([done.layers[layer]], raw_bytes([(k, v)]), done.stored_bytes)

    def groups(self, config):
        """[{(layer, "k" | "v", head)}]: what the profile codes together."""
        return [members(self._profile, g) for g in self._profile.groups]

    def _layers_of(self, group):
        return {layer for layer, _, _ in members(self._profile, group)}

    def _code(self, p, x):
        """(x after the chosen stage, bits)."""
        from tools.calibrate import fit, reference
        step, table_set = p.steps[self._preset], p.preset_table_set[self._preset]
        if not self._stage:
            done = reference.run(p, x, step, table_set)
            return done.x, done.bits + done.framing_bits
        out = x.clone()
        for group, t, c in zip(p.groups, p.transforms, p.coefficients):
            index = torch.as_tensor(group.index, device=x.device)
            out[fit.SINKS:, index] = t.inverse(
                self._coordinates(t, c, x[fit.SINKS:, index], step))
        return out, 0

    def _coordinates(self, t, coefficients, x, step):
        from tools.calibrate import reference
        if self._stage == "transform":
            return t.forward(x)
        coded = reference.quantise(t, coefficients, x, step, self._profile.rounding,
                                   use_classes=self._stage == "classes")
        if self._stage == "dropped":
            return torch.where(coded.present, coded.scaled * coded.step[:, None],
                               torch.zeros_like(coded.scaled))
        return coded.q.float() * coded.step[:, None]


def members(profile, group):
    """{(layer, "k" | "v", head)} of one group of a tools.calibrate profile."""
    out = set()
    for i in group.sub_vectors:
        sub = profile.layout.sub_vectors[i]
        plane = profile.layout.planes[sub.plane]
        out.add((plane.layer, plane.stream.lower(), sub.head))
    return out



def file_groups(profile):
    """As members, of every group that a profile file names; [] where it names none."""
    with safetensors.safe_open(profile, framework="np") as f:
        count = sum(n.startswith("group.") and n.endswith(".members") for n in f.keys())
        return [{(int(layer), " kv"[int(stream)], int(head))
                 for layer, stream, head in f.get_tensor(f"group.{i}.members")}
                for i in range(count)]
