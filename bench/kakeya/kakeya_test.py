"""Guardrail calibration and audits on a small random model, through the kakeya command."""

import contextlib
import io
import json
import os
import pathlib
import tempfile
import types
import unittest
from unittest import mock

import numpy as np
import safetensors.numpy
import torch

from bench.kakeya import attention, codecs, compare, scores, table
from bench.kakeya import __main__ as command
from bench.quality import protocols
from tools.calibrate import __main__ as calibrate_command
from tools.calibrate import capture, guardrails
from tools.models import cache as cache_lib
from tools.models import forward, random_model

KAKEYA = os.environ.get("KAKEYA", "")
PARAMS = {"preset": "kakeya-1.3-ppl", "k": {"clusters": 4}, "v": {"clusters": 4}}


def passages(count, tokens):
    return [types.SimpleNamespace(kind="random",
                                  ids=np.asarray(random_model.tokens(1, tokens, seed)[0]))
            for seed in range(count)]


class GuardrailsTest(unittest.TestCase):
    def test_moments_are_those_of_plain_loops_over_queries_before_rope(self):
        model = random_model.model("qwen2")
        given = passages(2, 40)
        seen = []
        sums, count = guardrails.second_moments(model, given, lambda p, cache: seen.append(p))
        self.assertEqual(len(seen), 2)
        self.assertEqual(count, 2 * 40 * 2)  # two query heads a KV head
        queries = {}
        for p in given:
            model.run(torch.as_tensor(p.ids)[None], kv_hook=lambda layer, stream, x, at: (
                queries.setdefault(layer, []).append(x[0].double())
                if stream == "q_pre" else None))
        slow = torch.zeros(16, 16, dtype=torch.float64)
        for q in queries[1]:
            for head in (2, 3):  # of KV head 1
                for t in range(q.shape[1]):
                    slow += torch.outer(q[head, t], q[head, t])
        self.assertLess((sums[1][1] - slow).abs().max(), 1e-9 * slow.abs().max())

    def test_a_factor_is_the_moments_to_a_scale_and_its_condition_can_be_limited(self):
        g = torch.Generator().manual_seed(1)
        x = torch.randn(500, 8, generator=g, dtype=torch.float64) * 2.0 ** -torch.arange(8)
        moment = (x.T @ x / 500)[None]
        sigma, chol = guardrails.factor(moment, ridge=0)
        self.assertLess((chol @ chol.transpose(1, 2) - sigma).abs().max(), 1e-12)
        self.assertLess((sigma / sigma[0, 0, 0] - moment / moment[0, 0, 0]).abs().max(), 1e-12)
        self.assertAlmostEqual(float(sigma[0].diagonal().mean()), 1)
        limited, _ = guardrails.factor(moment, max_condition=50)
        self.assertLess(float(torch.linalg.cond(limited[0])), 50.001)
        self.assertGreater(float(torch.linalg.cond(sigma[0])), 1000)

    def test_the_score_metric_is_the_mean_over_the_distances_of_pairs(self):
        model = random_model.model("qwen2")
        g = torch.Generator().manual_seed(3)
        q = torch.randn(6, 16, generator=g, dtype=torch.float64)
        reach, layer = 9, 1
        moment = q.T @ q / len(q)
        slow, pairs = torch.zeros(16, 16, dtype=torch.float64), 0
        for m in range(reach):
            for n in range(m + 1):
                tables = capture.rope_tables(model, layer, torch.tensor([m - n]))
                turned = forward.rotate(q[:, None].float(), *tables)[:, 0].double()
                slow += turned.T @ turned / len(q)
                pairs += 1
        made = guardrails.spread(moment[None], model._inv_freq[layer], reach)[0]
        self.assertLess((made - slow / pairs).abs().max(), 1e-5 * slow.abs().max())
        one = guardrails.spread(moment[None], model._inv_freq[layer], 1)[0]
        self.assertLess((one - moment).abs().max(), 1e-12, "at distance 0 it is the moment")
        self.assertGreater((made - moment).abs().max(), .05 * moment.abs().max())

    def test_tables_of_normal_samples_are_the_textbooks(self):
        want = {1: [.7979], 2: [.4528, 1.5104], 3: [.2451, .7560, 1.3439, 2.1519],
                4: [.1284, .3880, .6568, .9423, 1.2562, 1.6180, 2.0690, 2.7326]}
        mse = {1: .36338, 2: .11748, 3: .03455, 4: .00950}
        edges = np.linspace(-8, 8, 16001)
        centres = (edges[:-1] + edges[1:]) / 2
        for bits in want:
            levels = guardrails.gaussian_levels(bits)
            np.testing.assert_allclose(levels[len(levels) // 2:], want[bits], atol=2e-3)
            error = guardrails.squared_error(np.exp(-centres ** 2 / 2), edges, levels)
            self.assertAlmostEqual(error, mse[bits], places=4)

    def test_tables_of_other_samples_gain_on_them(self):
        rng = np.random.default_rng(1)
        samples = guardrails.Samples()
        x = rng.laplace(size=200000) / 2 ** .5
        samples.histogram["k"] += np.histogram(x, samples.EDGES)[0]
        samples.histogram["v"] += np.histogram(rng.normal(size=200000), samples.EDGES)[0]
        tables, gains = samples.tables()
        self.assertGreater(gains["k_b3"]["gain"], 1.2)
        self.assertLess(gains["v_b3"]["gain"], 1.01)
        for table in tables.values():
            self.assertTrue((np.diff(table) > 0).all())


class ScoresTest(unittest.TestCase):
    def test_errors_are_those_of_plain_loops(self):
        g = torch.Generator().manual_seed(1)
        t, d = 7, 4
        q_pre, q, k, noise = (torch.randn(t, d, generator=g) for _ in range(4))
        other, unrotated = k + .3 * noise, .5 * noise
        e = scores.head_errors(q_pre, q, k, other, unrotated)
        squares, kl, metric = [], [], 0
        for m in range(t):
            a = torch.stack([q[m] @ k[n] / 2 for n in range(m + 1)])
            b = torch.stack([q[m] @ other[n] / 2 for n in range(m + 1)])
            squares += [(x - y) ** 2 for x, y in zip(a, b)]
            kl.append(sum(a.softmax(0) * (a.log_softmax(0) - b.log_softmax(0))))
            metric += sum((q_pre[m] @ unrotated[n]) ** 2 for n in range(t)) / t / t / d
        self.assertAlmostEqual(e.mse, float((.09 * noise ** 2).mean()), places=5)
        self.assertAlmostEqual(e.metric, float(metric), places=5)
        self.assertAlmostEqual(e.score, float(sum(squares) / len(squares)), places=5)
        self.assertAlmostEqual(e.kl, float(sum(kl) / t), places=5)
        self.assertGreater(e.kl_sinks, 0)
        self.assertGreater(e.kl_rest, 0)
        same = scores.head_errors(q_pre, q, k, k, 0 * unrotated)
        self.assertEqual((same.mse, same.metric, same.score, same.kl), (0, 0, 0, 0))


@unittest.skipUnless(KAKEYA, "KAKEYA names no binary")
class KakeyaTest(unittest.TestCase):
    def setUp(self):
        self._tmp = tempfile.TemporaryDirectory()
        self.tmp = pathlib.Path(self._tmp.name)
        self.model = random_model.model("llama")
        self.passage = passages(1, 129)[0]
        self.clean = protocols.Passage(self.model, "whole", self.passage.ids.tolist())

    def tearDown(self):
        self._tmp.cleanup()

    def codec(self, params, **options):
        return codecs.Kakeya("k", KAKEYA, params, block_tokens=64, **options)

    def decode(self, params, **options):
        made = self.codec(params, **options)
        return made(self.model.config, self.clean.cache, self.clean.token_ids), made.reports[0]

    def test_every_setting_runs_and_counts_every_byte(self):
        profile = self.tmp / "p.safetensors"
        guardrails.calibrate(self.model, passages(2, 128), KAKEYA, profile, PARAMS, "test",
                             block_tokens=64)
        made = json.loads(pathlib.Path(f"{profile}.json").read_text())
        self.assertEqual(len(made["moments"]), 3 * 2)
        self.assertGreaterEqual(made["tables"]["k_b3"]["gain"], 1 - 1e-9)
        for name, params in codecs.settings().items():
            weights = attention.Weights(self.model) if name.startswith("attention") else None
            if "hot_layers" in params:  # of a model with fewer layers
                params = {**params, "hot_layers": [x for x in params["hot_layers"] if x < 3]}
            raw_layers = {layer % 3 for layer in params.get("raw_layers", [])}
            decoded, report = self.decode(params, profile=profile, weights=weights)
            self.assertEqual(decoded.raw_bytes, sum(2 * 2 * k.numel() for k, _ in
                                                    self.clean.cache), name)
            self.assertEqual(decoded.stored_bytes,
                             sum(p["stored_bytes"] for p in report["planes"]), name)
            for p in report["planes"]:
                raw = p["layer"] in raw_layers
                self.assertEqual(p["coded"], not raw, name)
                if raw:
                    self.assertEqual(p["stored_bytes"], p["raw_bytes"])
            for layer in raw_layers:
                for a, b in zip(self.clean.cache[layer], decoded.layers[layer]):
                    self.assertTrue(torch.equal(a, b), name)

    def test_the_command_measures_reports_and_goes_on(self):
        args = command._parser().parse_args(
            ["quality", "m", "--text", "x=y", "--kakeya", KAKEYA, "--out", str(self.tmp / "o"),
             "--setting", "identity", "--setting", "bare", "--setting",
             'finer={"k": {"bits": 4}, "hot_layers": [-1]}', "--tokens", "129", "--variant", "kv",
             "--variant", "k", "--protocol", "whole", "--block-tokens", "64"])
        with contextlib.redirect_stdout(io.StringIO()) as said:
            for _ in range(2):
                command.measure(args, self.model, [self.passage])
        self.assertIn("| finer | kv |", said.getvalue())
        rows = (self.tmp / "o" / "results.jsonl").read_text().splitlines()
        self.assertEqual(len([r for r in rows if '"variant"' in r]), 3 * 2)
        self.assertTrue((self.tmp / "o" / "report.html").exists())
        lines = list(table.lines(table.gather([self.tmp / "o"]), ["bare"]))
        self.assertEqual([x.split(" | ")[0] for x in lines if x.startswith("| ")],
                         ["| setting", "| bare", "| identity", "| finer"] * 2)
        self.assertIn("| identity | 1.00 | +0.0 (+0.0) | 0.000 | 100.0 |", lines)
        args.setting = ["whitening"]
        with self.assertRaisesRegex(ValueError, "needs --profile"):
            command.measure(args, self.model, [self.passage])

    def test_layers_are_told_by_what_their_keys_do_to_attention(self):
        captured = [(self.passage, *command._captured(self.model, self.passage))]

        class Spoiler:
            name = "spoiler"

            def __call__(self, config, layers, token_ids):
                out = [(k + .01 * torch.randn_like(k.float()).to(k.dtype), v) for k, v in layers]
                out[1] = (layers[1][0] * -1, layers[1][1])
                return types.SimpleNamespace(layers=out, raw_bytes=2, stored_bytes=1)

        worst = scores.worst_layers(self.model, captured, Spoiler())
        self.assertEqual(worst[0][0], 1)
        self.assertGreater(worst[0][1], 10 * worst[1][1])
        lines = list(scores.table(self.model, captured, [self.codec({}), Spoiler()]))
        self.assertEqual(len(lines), 4)

    def test_guardrails_come_out_of_the_same_calibration_as_the_transform(self):
        out = self.tmp / "fklt.safetensors"
        args = calibrate_command.parse(
            ["m", "--text", "x=y", "--passages", "2", "--apart", "2", "--tokens", "640", "--draws",
             "1", "--out", str(out), "--guardrails", str(self.tmp / "g.safetensors"), "--kakeya",
             KAKEYA])
        stopped = RuntimeError("enough")
        with mock.patch.object(calibrate_command, "load", return_value=(self.model, None)), \
                mock.patch.object(calibrate_command.fetch, "resolve", side_effect=lambda x: x), \
                mock.patch.object(calibrate_command.text, "read_kinds", return_value={"x": ""}), \
                mock.patch.object(calibrate_command, "passages_of",
                                  return_value=(passages(2, 640), [], [])), \
                mock.patch.object(calibrate_command.calibrate, "file_sha256", return_value="0"), \
                mock.patch.object(calibrate_command.calibrate, "accumulate",
                                  side_effect=stopped), \
                self.assertRaises(RuntimeError):
            calibrate_command.run(args)  # the transform itself is pipeline_test's
        made = safetensors.numpy.load_file(str(self.tmp / "g.safetensors"))
        self.assertIn("layer_2_chol", made)
        self.assertIn("centroids_k_b3", made)
        decoded, report = self.decode({"preset": "kakeya-1.3-ppl"},
                                      profile=self.tmp / "g.safetensors")
        self.assertGreater(report["ratio"], 1)

    def test_the_tail_is_exact_and_short_caches_are_plain(self):
        decoded, report = self.decode({"preset": "kakeya-1.3"}, residual=32)
        for (a, _), (b, _) in zip(self.clean.cache, decoded.layers):
            self.assertTrue(torch.equal(a[:, 64:], b[:, 64:]))
            self.assertFalse(torch.equal(a[:, :64], b[:, :64]))
        decoded, report = self.decode({"preset": "kakeya-1.3"}, residual=100)
        self.assertEqual(report["ratio"], 1)

    def test_a_dump_is_two_dimensional_and_bit_equal_to_what_was_read(self):
        cache = self.tmp / "c.safetensors"
        cache_lib.write(cache, self.model.config, self.clean.cache, self.clean.token_ids)
        (self.tmp / "dump").mkdir()
        import subprocess
        subprocess.run([KAKEYA, "cache", str(cache), "--params", '{"unrotate_keys": false}',
                        "--block-tokens", "64", "--stages", "--dump", str(self.tmp / "dump"),
                        "--report", str(self.tmp / "r.json")], check=True)
        dumped = safetensors.numpy.load_file(str(self.tmp / "dump" / "k.01.safetensors"))
        self.assertEqual(dumped["original"].shape, (2 * 128, 16))
        self.assertEqual(dumped["original"].dtype, np.float32)
        self.assertTrue((dumped["original"] ==
                         self.clean.cache[1][0].float().reshape(-1, 16).numpy()).all())
        error = dumped["coded"].astype(np.float64) - dumped["original"]
        report = json.loads((self.tmp / "r.json").read_text())
        plane = [p for p in report["planes"] if p["layer"] == 1 and p["stream"] == "k"][0]
        self.assertAlmostEqual(plane["stages"]["coded"]["mse"], float((error ** 2).mean()),
                               delta=1e-9)
        self.assertEqual(len(list(command.stage_rows(report))), 3 * 2)

    def test_a_matrix_goes_through_and_back(self):
        rng = np.random.default_rng(1)
        x = (rng.normal(size=(300, 5)) @ rng.normal(size=(5, 24))).astype(np.float32)
        safetensors.numpy.save_file({"x": x}, str(self.tmp / "x"))
        import subprocess
        subprocess.run([KAKEYA, "matrix", str(self.tmp / "x"), "--out", str(self.tmp / "y"),
                        "--params", '{"k": {"bits": 4, "variance_ratio": 1}}', "--report",
                        str(self.tmp / "r.json")], check=True)
        y = safetensors.numpy.load_file(str(self.tmp / "y"))["x"]
        report = json.loads((self.tmp / "r.json").read_text())
        mse = float(((x.astype(np.float64) - y) ** 2).mean())
        self.assertAlmostEqual(report["decoded"]["mse"], mse, delta=1e-9 * max(1, mse))
        self.assertLess(mse, .02 * float((x ** 2).mean()))

    def test_what_the_command_cannot_read_is_said(self):
        with self.assertRaisesRegex(RuntimeError, "k.bits 9; expected 1 to 4"):
            self.decode({"k": {"bits": 9}})
        with self.assertRaisesRegex(RuntimeError, "need a profile"):
            self.decode({"whiten_keys": True})

    def test_turbo_error_is_its_tables_and_pairs_are_compared(self):
        x = np.random.default_rng(1).normal(size=(4000, 64))
        self.assertAlmostEqual(compare.turbo_mse(x), .0345, delta=.002)
        np.testing.assert_allclose(compare.hadamard(compare.hadamard(x)), x, atol=1e-12)
        cache = self.tmp / "c.safetensors"
        long = protocols.Passage(self.model, "whole", np.tile(self.passage.ids, 5).tolist())
        cache_lib.write(cache, self.model.config, long.cache, long.token_ids)
        lines = compare.rows(KAKEYA, cache)
        self.assertEqual(len(lines), 9)

    def test_weights_are_of_attention(self):
        weights = attention.Weights(self.model)(self.clean.cache, self.clean.token_ids)
        self.assertEqual(len(weights), 3)
        self.assertEqual(weights[0].shape, (128,))
        self.assertTrue((weights[0] > 0).all())


if __name__ == "__main__":
    unittest.main()
