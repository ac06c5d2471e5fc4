"""Verdicts at and around their limits."""

import unittest

from tools.calibrate import verdict


def result(**changes):
    r = {"setting": "compact", "groups": "4", "kld": 0.009, "dppl_percent": 0.5, "dppl_ci": 0.3,
         "top1": 96.0, "framed_ratio": 20.0, "kld_by_kind": {"a": 0.008, "b": 0.010},
         "predicted_by_kind": {"a": 0.009, "b": 0.011}}
    return {**r, **changes}


class VerdictTest(unittest.TestCase):
    def test_quality_needs_kld_perplexity_and_top1(self):
        self.assertTrue(verdict.quality(result()).passed)
        self.assertTrue(verdict.quality(result(dppl_percent=1.2)).passed)  # the interval is .3
        for bad in ({"kld": 0.0106}, {"dppl_percent": -1.31}, {"top1": 94.9}):
            self.assertFalse(verdict.quality(result(**bad)).passed, bad)

    def test_the_ratio_counts_only_with_the_quality(self):
        model = "SmolLM2-135M-Instruct"
        self.assertTrue(verdict.ratio(model, result()).passed)
        self.assertFalse(verdict.ratio(model, result(framed_ratio=18.9)).passed)
        self.assertFalse(verdict.ratio(model, result(kld=0.0106)).passed)
        self.assertIsNone(verdict.ratio(model, result(setting="balanced")))
        self.assertIsNone(verdict.ratio("another", result()))
        near = result(setting="near_lossless", groups="8", framed_ratio=11.2, kld=0.0029)
        self.assertTrue(verdict.ratio(model, near).passed)
        self.assertFalse(verdict.ratio(model, {**near, "kld": 0.0031}).passed)

    def test_the_certificate_is_held_to_the_mean_and_to_each_kind(self):
        self.assertTrue(verdict.certificate(result(), True).passed)
        one_off = {"a": 0.002, "b": 0.016}  # the mean is right, kind a is not
        self.assertFalse(verdict.certificate(result(kld_by_kind=one_off), True).passed)
        twice = {"a": 0.018, "b": 0.022}
        self.assertFalse(verdict.certificate(result(kld_by_kind=twice), True).passed)
        self.assertTrue(verdict.certificate(result(kld_by_kind=twice), False).passed)
        self.assertTrue(str(verdict.certificate(result(), True)).startswith("PASS (mean off"))


if __name__ == "__main__":
    unittest.main()
