"""Statistics, metric and transforms, on small random models made here."""

import unittest

import numpy as np
import torch

from tools.calibrate import calibrate, capture, fit, layout as layout_lib, protocol, reference
from tools.calibrate import sensitivity, tables
from tools.models import random_model


def small(seed=1):
    c = random_model.config("llama", layers=2)
    model = capture.RecomputingModel(c, random_model.weights(c, seed), kv_dtype=None)
    return model, capture.model_layout(c)


class LayoutTest(unittest.TestCase):
    def test_every_partition_covers_every_element_once(self):
        layout = layout_lib.Layout([(4, 8), None, (4, 8), (2, 16)])
        for groups in ("head", "stream", "layer", "2", "3", "all"):
            for tp in (1, 2):
                parts = layout.partition(groups, tp)
                index = np.sort(np.concatenate([g.index for g in parts]))
                self.assertTrue((index == np.arange(layout.elements)).all(), groups)

    def test_groups_do_not_cross_a_shard(self):
        layout = layout_lib.Layout([(4, 8)] * 3)
        for g in layout.partition("all", 2):
            heads = {layout.sub_vectors[i].head // 2 for i in g.sub_vectors}
            self.assertEqual(heads, {g.shard})

    def test_what_the_geometry_does_not_allow_is_said(self):
        layout = layout_lib.Layout([(3, 8)])
        with self.assertRaisesRegex(layout_lib.LayoutError, "3 kv heads"):
            layout.partition("layer", 2)
        with self.assertRaisesRegex(layout_lib.LayoutError, "expected head"):
            layout.partition("heads")

    def test_blocks_hold_groups_of_all_partitions(self):
        layout = layout_lib.Layout([(1, 4)] * 6)
        found = layout_lib.blocks(layout, [layout.partition("2"), layout.partition("3")])
        self.assertEqual([len(b) for b in found], [48])
        found = layout_lib.blocks(layout, [layout.partition("layer"), layout.partition("2")])
        self.assertEqual([len(b) for b in found], [16] * 3)


class MomentsTest(unittest.TestCase):
    def test_streamed_statistics_equal_those_of_all_at_once(self):
        rng = torch.Generator().manual_seed(3)
        layout = layout_lib.Layout([(2, 4)])
        # a mean in the hundreds, as Qwen's keys have
        x = torch.randn(90, 16, generator=rng) + 300 * torch.randn(16, generator=rng)
        moments = fit.Moments(16, layout_lib.blocks(layout, [layout.partition("layer")]), "cpu")
        for part in x.split(30):
            moments.add(part)
        want = np.cov(x.double().numpy().T, bias=True)
        got = moments.covariance(np.arange(16)).numpy()
        self.assertLess(np.abs(got - want).max(), 1e-4)
        self.assertLess(float((moments.mean() - x.double().mean(0)).abs().max()), 1e-4)

    def test_a_head_that_nothing_reads_is_named(self):
        layout = layout_lib.Layout([(2, 4)])
        metric = fit.Metric(layout, "cpu")
        g = torch.randn(1, 20, 16)
        g[:, :, 12:] = 0
        metric.add(g)
        with self.assertRaisesRegex(fit.FitError, "layer 0 V head 1"):
            metric.matrix()


class FisherTest(unittest.TestCase):
    def test_metric_predicts_the_kl_that_small_errors_cost(self):
        """1/2 sum dx^T M dx with M estimated at each passage's own tokens, against the KL that
        random errors in one layer's keys and values really cause."""
        model, layout = small()
        ids = random_model.tokens(1, 40)[0]
        metric = fit.Metric(layout, "cpu")
        g = capture.capture(model, layout, ids, 400, torch.Generator().manual_seed(5)).g
        metric.add(g)
        # the prediction averages over tokens, so errors must be drawn alike at each
        m = metric.total / metric.count
        rng = torch.Generator().manual_seed(6)
        x = capture.capture(model, layout, ids, 0, rng).x
        clean = log_p(model, layout, ids, x)
        for layer in range(2):
            predicted, measured = 0.0, 0.0
            for _ in range(24):
                e = torch.zeros_like(x)
                for p in layout.planes:
                    if p.layer == layer:
                        e[:, p.begin:p.begin + p.size] = 0.02 * torch.randn(
                            len(ids), p.size, generator=rng)
                for i, s in enumerate(layout.sub_vectors):
                    d = e[:, s.begin:s.begin + s.dim].double()
                    predicted += 0.5 * float(torch.einsum("ti,ij,tj->", d, m[i], d))
                other = log_p(model, layout, ids, x + e)
                measured += float((clean.exp() * (clean - other)).sum())
            self.assertGreater(measured, 0)
            self.assertLess(abs(np.log(predicted / measured)), np.log(1.25),
                            f"layer {layer}: predicted {predicted}, measured {measured}")

    def test_metric_of_a_prefix_predicts_the_kl_of_what_follows(self):
        """The same for capture_prefix: errors in one layer's cached keys and values of the
        prefix, against the KL per token of the continuation."""
        model, layout = small()
        ids, prefix = random_model.tokens(1, 40)[0], 24
        captured = capture.capture_prefix(model, layout, ids, 400,
                                          torch.Generator().manual_seed(5), prefix)
        self.assertEqual(tuple(captured.g.shape), (400, prefix, layout.elements))
        whole = capture.capture(model, layout, ids, 0, torch.Generator())
        self.assertLess(float((captured.x - whole.x).abs().max()), 1e-4)
        metric = fit.Metric(layout, "cpu")
        metric.add(captured.g)
        m = metric.total / metric.count
        rng = torch.Generator().manual_seed(6)
        clean = protocol.clean_run(model, layout, ids, prefix)
        for layer in range(2):
            predicted, measured = 0.0, 0.0
            for _ in range(24):
                e = torch.zeros_like(clean.x)
                for p in layout.planes:
                    if p.layer == layer:
                        e[:, p.begin:p.begin + p.size] = 0.02 * torch.randn(
                            prefix, p.size, generator=rng)
                for i, s in enumerate(layout.sub_vectors):
                    d = e[:, s.begin:s.begin + s.dim].double()
                    predicted += 0.5 * float(torch.einsum("ti,ij,tj->", d, m[i], d)) / prefix
                measured += float(protocol.score(model, layout, clean, clean.x + e).kl.mean())
            self.assertLess(abs(np.log(predicted / measured)), np.log(1.25),
                            f"layer {layer}: predicted {predicted}, measured {measured}")

    def test_gradients_are_the_same_with_recomputation(self):
        model, layout = small()
        ids = random_model.tokens(1, 24)[0]
        runs = []
        for recompute in (False, True):
            model.recompute = recompute
            runs.append(capture.capture_prefix(model, layout, ids, 1,
                                               torch.Generator().manual_seed(7), 16))
        self.assertTrue(torch.equal(runs[0].x, runs[1].x))
        self.assertLess(float((runs[0].g.float() - runs[1].g.float()).abs().max()),
                        1e-2 * float(runs[0].g.float().abs().max()))


def log_p(model, layout, ids, x):
    """Output with all keys and values replaced by x: the whole-sequence protocol."""
    planes = capture.unflatten(layout, x)

    def hook(layer, stream, value, positions):
        return planes.get((layer, {"k_pre": "K", "v": "V"}.get(stream)))

    with torch.no_grad():
        return torch.log_softmax(model.forward(ids[None], kv_hook=hook)[0], -1).double()


class TransformTest(unittest.TestCase):
    def setUp(self):
        rng = torch.Generator().manual_seed(11)
        d = 32
        a = torch.randn(d, d, generator=rng, dtype=torch.float64)
        b = torch.randn(2, 16, 16, generator=rng, dtype=torch.float64)
        self.mean = torch.randn(d, generator=rng, dtype=torch.float64) * 50
        self.metric = b @ b.transpose(1, 2) * 1e-4
        self.covariance = a @ a.T
        self.factor = torch.linalg.cholesky(self.metric)
        scale = fit.l_scale_log2(self.factor)
        self.t = fit.transform(self.mean, self.covariance, self.factor, scale)
        self.x = (torch.randn(4000, d, generator=rng, dtype=torch.float64) @ a.T
                  + self.mean).float()

    def test_coordinates_are_uncorrelated_with_the_stored_sigmas(self):
        y = self.t.forward(self.x).double()
        c = (y.T @ y / len(y)).numpy()
        sigma = self.t.sigma.numpy()
        self.assertTrue((np.diff(self.t.sigma16.numpy()) <= 0).all())
        correlation = c / np.outer(sigma, sigma)
        self.assertLess(np.abs(np.diag(correlation) - 1).max(), 0.15)
        self.assertLess(np.abs(correlation - np.diag(np.diag(correlation))).max(), 0.12)

    def test_an_error_costs_the_same_in_every_coordinate(self):
        y = self.t.forward(self.x[:8])
        rng = torch.Generator().manual_seed(12)
        e = torch.randn(y.shape, generator=rng) * 1e-3
        dx = (self.t.inverse(y + e) - self.t.inverse(y)).double()
        cost = sum((dx[:, i * 16:i * 16 + 16] @ self.metric[i] * dx[:, i * 16:i * 16 + 16])
                   .sum(1) for i in range(2))
        ratio = cost / e.double().pow(2).sum(1)
        self.assertLess(float((ratio - 1).abs().max()), 0.05)

    def test_inverse_undoes_forward(self):
        back = self.t.inverse(self.t.forward(self.x))
        self.assertLess(float((back - self.x).abs().max()), 0.02 * float(self.x.std()))

    def test_a_metric_that_is_not_positive_definite_is_named(self):
        layout = layout_lib.Layout([(1, 16)])
        bad = self.metric.clone()
        bad[1] -= 10 * torch.eye(16, dtype=torch.float64)
        with self.assertRaisesRegex(fit.FitError, "layer 0 V head 0.*not positive definite"):
            fit.cholesky(bad, layout)


class SensitivityTest(unittest.TestCase):
    def test_regression_finds_what_made_the_data(self):
        rng = torch.Generator().manual_seed(13)
        u = torch.randn(20000, 3, generator=rng)
        f = torch.cat([u, u * u], 1)
        truth = torch.tensor([-0.3, 0.5, 0.0, -0.4, 0.2, 0.0, 0.1])
        rate = sensitivity.predict(f, truth)
        s = rate * torch.rand(20000, generator=rng) * 2  # noisy, mean right
        found = sensitivity.fit(f, s)
        found[0] += torch.log(s.mean())  # fit() normalises the mean to one
        self.assertLess(float((found - truth).abs().max()), 0.05)

    def test_step_classes_follow_half_octaves(self):
        w = torch.tensor([1.0, 4.0, 0.25, 1e9, 1e-9])
        self.assertEqual(sensitivity.step_class(w).tolist(), [0, 1, -1, 6, -6])


class ReferenceTest(unittest.TestCase):
    def setUp(self):
        rng = torch.Generator().manual_seed(17)
        layout = layout_lib.Layout([(2, 8)])
        a = torch.randn(32, 32, generator=rng, dtype=torch.float64)
        factor = torch.eye(8, dtype=torch.float64).repeat(4, 1, 1)
        t = fit.transform(torch.zeros(32, dtype=torch.float64), a @ a.T, factor, 0)
        self.x = (torch.randn(300, 32, generator=rng, dtype=torch.float64) @ a.T).float()
        self.draft = calibrate.Draft(layout, layout.partition("layer"), [t], [torch.zeros(1)],
                                     [tables.fit(tables.Counts("cpu"))])

    def test_error_shrinks_and_bits_grow_as_the_step_does(self):
        before = None
        for step in (16, 0, -16):
            counts = tables.Counts("cpu")
            reference.run(self.draft, self.x, step, counts=counts)
            self.draft.tables = [tables.fit(counts)]
            r = reference.run(self.draft, self.x, step, sinks=0)
            error = float((r.x - self.x).double().pow(2).sum(1).mean())
            # the metric is the identity: predicted is half the squared error
            self.assertLess(abs(2 * r.predicted / error - 1), 0.02)
            if before:
                self.assertLess(error, before[0] / 4)
                self.assertGreater(r.bits, before[1])
            before = error, r.bits

    def test_sinks_take_ten_bits_whatever_the_step(self):
        coarse, fine = (reference.run(self.draft, self.x, step) for step in (24, -16))
        self.assertTrue(torch.equal(coarse.x[:4], fine.x[:4]))
        largest = self.x[:4].view(4, 4, 8).abs().amax(2, keepdim=True)
        error = (coarse.x - self.x)[:4].view(4, 4, 8).abs()
        # half a step; steps are 2^(1/8) apart, and the largest is within 511.5 of them
        self.assertLess(float((error / largest).max()), 0.5 * 2 ** 0.125 / 511.5 * 1.01)
        self.assertGreater(float(error.max()), 0)
        decoded, bits, cost = reference.code_sinks(self.draft.transforms[0], self.x[:4])
        self.assertEqual(bits, 4 * 32 * 10 + 4 * 4 * 8)
        self.assertTrue(torch.equal(decoded, coarse.x[:4]))
        self.assertAlmostEqual(
            float(cost) / (1024 * float((decoded - self.x[:4]).double().pow(2).sum())), 1, 2)


if __name__ == "__main__":
    unittest.main()
