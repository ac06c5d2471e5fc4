import math
import unittest

from bench.quality import scores
from bench.quality.scores import PassageScore


def passage(dnll=0.0, kl=(0.0,), top1=1.0, kind="wiki", number=0, nll=2.0):
    return PassageScore(kind, number, dnll, nll, tuple(kl), top1, 160, 40)


class StatisticsTest(unittest.TestCase):
    def test_t_is_the_tabulated_one_and_between_its_neighbours(self):
        self.assertEqual(scores.t95(7), 2.3646)
        for df, known in ((11, 2.2010), (25, 2.0595), (31, 2.0395), (40, 2.0211), (1000, 1.9623)):
            self.assertAlmostEqual(scores.t95(df), known, delta=0.002)

    def test_the_interval_of_known_numbers(self):
        # mean 3, sample variance 2.5, standard error sqrt(.5)
        self.assertAlmostEqual(scores.half_interval([1, 2, 3, 4, 5]),
                               2.7764 * math.sqrt(0.5), places=9)
        self.assertEqual(scores.half_interval([4.0, 4.0, 4.0]), 0)
        self.assertTrue(math.isnan(scores.half_interval([4.0])))

    def test_percentiles_of_known_numbers(self):
        self.assertAlmostEqual(scores.percentile(list(range(101)), 99), 99)
        self.assertAlmostEqual(scores.percentile([3.0, 1.0], 50), 2)
        self.assertEqual(scores.percentile([7.0], 99), 7)

    def test_a_summary_of_known_passages(self):
        s = scores.summarise([
            passage(math.log(1.02), [0.0, 0.02], 1.0, "code", 0, math.log(4)),
            passage(math.log(1.04), [0.04, 0.10], 0.5, "wiki", 1, math.log(9))])
        self.assertAlmostEqual(s.dppl, 100 * (math.sqrt(1.02 * 1.04) - 1))
        self.assertAlmostEqual(s.ppl, 6)
        self.assertAlmostEqual(s.kld, 0.04)
        self.assertAlmostEqual(s.top1, 75)
        self.assertEqual((s.worst_kind, s.worst_passage, s.tokens), ("wiki", 1, 4))
        self.assertAlmostEqual(s.worst_kld, 0.07)
        self.assertAlmostEqual(s.p99, 0.04 + 0.97 * 0.06)
        self.assertEqual((s.ratio, s.bits), (4, 4))
        spread = math.log(1.04 / 1.02) / math.sqrt(2)  # of two: |a - b| / sqrt(2)
        self.assertAlmostEqual(s.dppl_half, 100 * math.sqrt(1.02 * 1.04) * 12.7062 * spread
                               / math.sqrt(2), places=6)

    def test_the_interval_is_over_passages_not_tokens(self):
        few = scores.summarise([passage(0.01, [0.1] * 4), passage(0.03, [0.3] * 4)])
        many = scores.summarise([passage(0.01, [0.1] * 400), passage(0.03, [0.3] * 400)])
        self.assertAlmostEqual(few.dppl_half, many.dppl_half)


class VerdictTest(unittest.TestCase):
    def verdict(self, dppl, top1, kld=0.001, lossless=False):
        s = scores.summarise([passage(math.log1p(dppl / 100), [kld], top1 / 100)] * 2)
        return scores.verdict(s, lossless), scores.passes(s, lossless)

    def test_the_bars(self):
        self.assertEqual(self.verdict(0.9, 96), ("ACCEPT", True))
        self.assertEqual(self.verdict(-0.9, 96), ("ACCEPT", True))
        self.assertEqual(self.verdict(0.9, 96, kld=0.02), ("ACCEPT", False))
        self.assertEqual(self.verdict(0.9, 94), ("MARGINAL", False))
        self.assertEqual(self.verdict(-2.9, 86), ("MARGINAL", False))
        self.assertEqual(self.verdict(3.1, 99), ("REJECT", False))
        self.assertEqual(self.verdict(0.1, 84), ("REJECT", False))

    def test_a_wide_interval_lets_dppl_pass_but_not_the_verdict(self):
        s = scores.summarise([passage(0.0), passage(0.04)])
        self.assertEqual((scores.verdict(s), scores.passes(s)), ("MARGINAL", True))

    def test_what_promises_the_same_bits_must_score_exactly_zero(self):
        self.assertEqual(self.verdict(0, 100, kld=0, lossless=True), ("ACCEPT", True))
        self.assertEqual(self.verdict(0, 100, kld=1e-12, lossless=True), ("REJECT", False))


if __name__ == "__main__":
    unittest.main()
