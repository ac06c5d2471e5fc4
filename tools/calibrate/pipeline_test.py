"""From passages to a profile file and back, on a small random model."""

import os
import tempfile
import unittest
from unittest import mock

import numpy as np
import torch

from tools.calibrate import calibrate, capture, evaluate, fit, profile, protocol, reference
from tools.calibrate import retune, tables, text
from tools.models import random_model

SEED = 5


def setting(layers=2):
    c = random_model.config("llama", layers=layers)
    model = capture.RecomputingModel(c, random_model.weights(c, 1))
    rng = np.random.default_rng(SEED)
    passages = [text.Passage("ab"[i % 2], i, rng.integers(0, 97, 64)) for i in range(8)]
    return model, capture.model_layout(c), passages


def draft_of(model, layout, passages, groups, store):
    calibrate.capture_all(model, layout, passages, 2, SEED, store)
    part = layout.partition(groups)
    moments, metric = calibrate.accumulate(layout, store, len(passages), [part], "cpu")
    factor = fit.cholesky(metric.matrix(), layout)
    scale = fit.l_scale_log2(factor)
    transforms = calibrate.fit_transforms(layout, part, moments, factor, scale)
    coefficients = calibrate.fit_sensitivity(part, transforms, factor, store, len(passages))
    return calibrate.Draft(layout, part, transforms, coefficients, []), scale


class PipelineTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model, cls.layout, passages = setting()
        cls.passages, cls.apart = passages[:6], passages[6:]
        store = calibrate.Store(None, {}, "cpu")
        draft, scale = draft_of(cls.model, cls.layout, cls.passages, "layer", store)
        about = {"name": "toy", "model": "random", "l_scale_log2": scale,
                 "geometry": profile.geometry_json(cls.model.config)}
        # "check": other text, here of another half of the vocabulary
        rng = np.random.default_rng(SEED + 1)
        check = [text.Passage("c", i, rng.integers(40, 97, 64)) for i in range(2)]
        tried = calibrate.trials(cls.model, cls.layout, cls.apart, check)
        cls.profile, cls.report = calibrate.finish(cls.model, draft, store, 6, tried, about)

    def test_presets_are_in_order_and_certificates_finite(self):
        p = self.profile
        self.assertEqual(p.steps, sorted(p.steps))
        self.assertTrue(np.isfinite(p.certificates).all() and (p.certificates >= 0).all())
        self.assertTrue(all(k > 0 for k in p.kappa))

    def test_the_transfer_factor_is_kept_with_the_profile(self):
        factor = self.report["transfer"]
        self.assertGreaterEqual(factor, 1)
        self.assertEqual(self.profile.metadata["fklt.transfer"], f"{factor:.3f}")
        self.assertEqual(list(self.report["transfer_by_kind"]), ["c"])

    def test_a_finer_preset_loses_less_and_stores_more(self):
        rows = evaluate.evaluate(self.model, {"toy": self.profile}, self.apart,
                                 extra_steps=[-24])
        same = evaluate.summarise(rows["identity", ""])
        self.assertEqual((same["kld"], same["dppl_percent"], same["top1"]), (0, 0, 100))
        near, compact = (evaluate.summarise(rows["toy", k]) for k in
                         ("near_lossless", "compact"))
        finest = evaluate.summarise(rows["toy", f"step {self.profile.steps[1] - 24}"])
        self.assertLess(near["kld"], compact["kld"])
        self.assertLess(finest["kld"], near["kld"])
        self.assertGreater(near["bits"], compact["bits"])
        self.assertGreater(finest["bits"], near["bits"])

    def test_what_is_written_reads_back_and_encodes_alike(self):
        x = protocol.clean_run(self.model, self.layout, self.apart[0].ids).x
        with tempfile.TemporaryDirectory() as tmp:
            path = os.path.join(tmp, "p.safetensors")
            profile.write(path, self.profile)
            back = profile.read(path)
        step = self.profile.steps[1]
        a, b = reference.run(self.profile, x, step), reference.run(back, x, step)
        self.assertEqual(a.bits, b.bits)
        self.assertTrue(torch.equal(a.x, b.x))
        self.assertEqual(back.metadata["codec"], "fklt")
        self.assertEqual(profile.tensors_of(back).keys(), profile.tensors_of(self.profile).keys())

    def test_stored_tensors_keep_the_format_s_limits(self):
        t = profile.tensors_of(self.profile)
        for n in range(int(t["fklt.groups"][0])):
            u = t[f"group.{n}.U"].astype(np.float64)
            self.assertLess(np.abs(u @ u.T - np.eye(len(u))).max(), 0.02)
            self.assertTrue((np.diff(t[f"group.{n}.sigma"]) <= 0).all())
            low = t[f"group.{n}.L"].reshape(len(t[f"group.{n}.members"]), -1)
            rows, columns = np.tril_indices(16)
            self.assertTrue((low[:, rows == columns] > 0).all())
        shape, freq = t["fklt.tables.0.shape"], t["fklt.tables.0.freq"]
        ends = np.cumsum(shape[:, 1] + 1)
        for part in np.split(freq, ends[:-1]):
            self.assertEqual(part.sum(), tables.TOTAL)

    def test_retuning_to_other_targets_moves_the_steps(self):
        with tempfile.TemporaryDirectory() as tmp:
            path = os.path.join(tmp, "p.safetensors")
            profile.write(path, self.profile)
            p = profile.read(path)
        retune.retune(p, self.report["measured"], calibrate.TARGETS)
        for new, old in zip(p.steps, self.profile.steps):  # measured points were added
            self.assertLessEqual(abs(new - old), 1)
        retune.retune(p, self.report["measured"], [t / 3 for t in calibrate.TARGETS])
        self.assertLess(p.steps[2], self.profile.steps[2])

    def test_a_number_that_is_not_finite_is_never_written(self):
        with tempfile.TemporaryDirectory() as tmp, mock.patch.object(
                self.profile, "kappa", [float("nan")] * 3):
            path = os.path.join(tmp, "p.safetensors")
            with self.assertRaisesRegex(profile.ProfileError, "fklt.kappa"):
                profile.write(path, self.profile)
            self.assertEqual(os.listdir(tmp), [])


def measured(apart, check=None, steps=(-64, -60, -56)):
    """Rows as measure() gives them, KLDs that grow fourfold a step of four."""
    rows = {}
    for n, i in enumerate(steps):
        row = lambda source, kind, scale: {
            "source": source, "kind": kind, "kld": scale * 0.001 * 4.0 ** n,
            "predicted": 0.002 * 4.0 ** n, "bits": 2.0 - 0.5 * n}
        rows[i] = [row("apart", "a", apart)]
        rows[i] += [row("check", k, v) for k, v in (check or {}).items()]
    return rows


class PresetTest(unittest.TestCase):
    def test_steps_are_the_coarsest_that_hold_the_targets_on_foreign_text(self):
        # apart: .001, .004, .016; foreign text loses twice that
        rows = measured(1.0, {"x": 1.0, "y": 3.0})
        factor, kinds = calibrate.transfer_of(rows)
        self.assertAlmostEqual(factor, 2.0)
        self.assertAlmostEqual(kinds["y"], 3.0)
        targets = (0.0021, 0.0081, 0.02)
        self.assertEqual(calibrate.choose_steps(rows, targets), [-64, -60, -58])

    def test_kappa_makes_the_certificate_right_on_foreign_text(self):
        rows = measured(1.0, {"x": 1.5})
        floor = 0.0001
        for i, kappa in zip((-64, -60), calibrate.fit_kappa(rows, (-64, -60), floor)):
            foreign = 1.5 * calibrate.at_step(rows, i, "kld")
            self.assertAlmostEqual(
                kappa * calibrate.at_step(rows, i, "predicted", "check") + floor, foreign, 7)

    def test_easier_foreign_text_makes_no_preset_coarser(self):
        self.assertEqual(calibrate.transfer_of(measured(1.0, {"x": 0.5}))[0], 1.0)

    def test_without_foreign_text_a_factor_is_assumed(self):
        self.assertEqual(calibrate.transfer_of(measured(1.0)), (calibrate.ASSUMED_TRANSFER, {}))

    def test_noise_in_the_loss_does_not_hide_a_coarser_step(self):
        rows = measured(1.0)
        rows[-60][0]["kld"] = 0.0005  # less than at -64: noise
        self.assertGreaterEqual(calibrate.at_step(rows, -60, "kld"), 0.001)


class ResumeTest(unittest.TestCase):
    def test_an_interrupted_capture_goes_on_and_gives_the_same(self):
        model, layout, passages = setting(1)
        passages = passages[:3]
        with tempfile.TemporaryDirectory() as tmp:
            store = calibrate.Store(tmp, {"plan": 1}, "cpu")
            calibrate.capture_all(model, layout, passages[:2], 1, SEED, store)  # "interrupted"
            before = os.stat(os.path.join(tmp, "0000.npz")).st_mtime_ns
            store = calibrate.Store(tmp, {"plan": 1}, "cpu")
            calibrate.capture_all(model, layout, passages, 1, SEED, store)
            self.assertEqual(os.stat(os.path.join(tmp, "0000.npz")).st_mtime_ns, before)
            whole = calibrate.Store(None, {}, "cpu")
            calibrate.capture_all(model, layout, passages, 1, SEED, whole)
            for i in range(3):
                self.assertTrue(torch.equal(store.get(i).x, whole.get(i).x))
                self.assertTrue(torch.equal(store.get(i).g, whole.get(i).g))
            with self.assertRaisesRegex(fit.FitError, "another plan"):
                calibrate.Store(tmp, {"plan": 2}, "cpu")


if __name__ == "__main__":
    unittest.main()
