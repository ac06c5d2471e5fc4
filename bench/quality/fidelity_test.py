"""Honest codecs pass, however coarse; one faulty place in one layer is named."""

import dataclasses
import unittest

import torch

from bench.quality import fidelity, roundtrip
from tools.models import random_model

SEED = 20
LAYERS, TOKENS = 6, 400


class Config:
    """Of a random model, with more layers."""

    def __init__(self, arch="llama"):
        config = random_model.model(arch).config
        self.config = dataclasses.replace(config, layers=(config.layers * LAYERS)[:LAYERS])
        self.dim = config.head_dim


def cache(config, dim):
    """Keys with a mean of their own a head and energy that falls off over the coordinates, as
    models have, rotated; values without a mean."""
    from tools.models import forward
    g = torch.Generator().manual_seed(SEED)
    out = []
    for layer in config.layers:
        heads = config.kv_heads
        mix = torch.randn(heads, dim, dim, generator=g) * (0.8 ** torch.arange(dim))[:, None]
        plain = torch.randn(heads, TOKENS, dim, generator=g) @ mix
        plain = plain + 2 * torch.randn(heads, 1, dim, generator=g)
        angle = torch.arange(TOKENS)[:, None] * torch.tensor(layer.rope.inv_freq())[None]
        k = forward.rotate(plain, angle.cos(), angle.sin())
        v = torch.randn(heads, TOKENS, dim, generator=g) @ mix
        out.append((k.bfloat16(), v.bfloat16()))
    return out


class Shrinking:
    """Principal axes of each head, with `levels` levels each at the means of what falls on
    them (Lloyd-Max), and the weakest axes dropped: a decoder that shrinks."""

    lossless = False

    def __init__(self, levels, kept):
        self.name = f"lloyd-{levels}-{kept}"
        self._levels, self._kept = levels, kept

    def __call__(self, config, layers, token_ids):
        return roundtrip.Decoded([tuple(self._head(x.float()).bfloat16() for x in pair)
                                  for pair in layers], 1, 1)

    def _head(self, x):
        mean = x.mean(1, keepdim=True)
        _, _, axes = torch.linalg.svd(x - mean, full_matrices=False)
        y = (x - mean) @ axes.transpose(1, 2)
        kept = int(self._kept * y.shape[-1])
        edges = torch.linspace(-2, 2, self._levels - 1)
        for h in range(y.shape[0]):
            for i in range(y.shape[2]):
                cell = torch.bucketize(y[h, :, i] / y[h, :, i].std(), edges)
                for c in cell.unique():
                    y[h, cell == c, i] = y[h, cell == c, i].mean()
        y[..., kept:] = 0
        return y @ axes + mean


class FidelityTest(unittest.TestCase):
    codecs = (roundtrip.Identity(), roundtrip.ScalarReference(8), roundtrip.ScalarReference(5),
              roundtrip.ScalarReference(4), Shrinking(16, 1), Shrinking(8, 0.8),
              Shrinking(4, 0.8), Shrinking(4, 0.5))

    @classmethod
    def setUpClass(cls):
        cls.made = Config()
        cls.clean = cache(cls.made.config, cls.made.dim)
        cls.decoded = {c.name: c(cls.made.config, cls.clean, None).layers for c in cls.codecs}

    def found(self, codec, fault=None):
        layers = self.decoded[codec.name]
        again = type("Again", (), {
            "name": codec.name, "lossless": False,
            "__call__": lambda *_: roundtrip.Decoded(list(layers), 1, 1)})()
        codec = roundtrip.Fault(again, fault) if fault else again
        return fidelity.measure(self.made.config, self.clean,
                                codec(self.made.config, self.clean, None).layers)

    def test_honest_codecs_pass_however_coarse(self):
        for codec in self.codecs:
            self.assertEqual(fidelity.faults(self.found(codec)), [], codec.name)

    def test_every_planted_fault_is_named_down_to_three_bits(self):
        says = {"shifted-key": f"layer {LAYERS // 2} K head 0: keys are turned by",
                "scaled-value": f"layer {LAYERS // 2} V head 0: gain",
                "wrong-mean": f"layer {LAYERS // 2} K head 0: the mean is off by"}
        for codec in self.codecs[:6]:  # below that a gain of 5 % drowns in the noise
            for kind, sentence in says.items():
                faults = fidelity.faults(self.found(codec, kind))
                self.assertTrue(any(f.startswith(sentence) for f in faults),
                                f"seed {SEED}: {codec.name}+{kind}: {faults}")
                places = {f.split(":")[0].rsplit(" head", 1)[0] for f in faults}
                self.assertEqual(len(places), 1, f"{codec.name}+{kind}: {faults}")

    def test_figures_of_known_changes(self):
        made = Config()
        clean = cache(made.config, made.dim)
        changed = [(k, (v.float() * 1.25).bfloat16()) for k, v in clean]
        v = [h for h in fidelity.measure(made.config, clean, changed) if h.stream == "v"]
        for h in v:
            self.assertAlmostEqual(h.gain_dc, 1.25, places=2)
            self.assertAlmostEqual(h.gain_cd, 0.8, places=2)
            self.assertAlmostEqual(h.noise, 0.25, places=2)
            self.assertEqual(h.turn, 0)

    def test_tokens_outside_a_window_do_not_count(self):
        made = Config("gemma3")
        clean = cache(made.config, made.dim)
        window = made.config.layers[0].window
        self.assertGreater(window, 0)
        lost = [tuple(x.clone() for x in pair) for pair in clean]
        for layer, pair in zip(made.config.layers, lost):
            for x in pair:
                x[:, :TOKENS - layer.window if layer.window else 0] = 0
        for h in fidelity.measure(made.config, clean, lost):
            self.assertEqual((h.noise, h.offset), (0, 0))

    def test_rows_keep_the_figures(self):
        for h in self.found(self.codecs[3]):
            again = fidelity.Head.from_row(h.row())
            self.assertEqual((again.layer, again.stream, again.head), (h.layer, h.stream, h.head))
            self.assertAlmostEqual(again.gain_cd, h.gain_cd, places=3)

    def test_the_median_over_passages_drops_one_odd_passage(self):
        heads = self.found(self.codecs[1])
        odd = self.found(self.codecs[1], "shifted-key")
        self.assertEqual(fidelity.faults(fidelity.over_passages([heads, odd, heads])), [])
        self.assertNotEqual(fidelity.faults(fidelity.over_passages([odd, odd, heads])), [])


if __name__ == "__main__":
    unittest.main()
