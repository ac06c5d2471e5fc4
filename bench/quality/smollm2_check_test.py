"""The whole harness on SmolLM2-135M in minutes on two cores: 2 passages of 512 tokens
through the real daemon.

Needs the fetched model: says so and skips when it is not in the cache folder (tools/test
fetches it; python3 -m tools.models fetch smollm2-135m)."""

import io
import os
import pathlib
import tempfile
import types
import unittest

from bench.quality import (built_package, daemon, evaluate, python_client, results, roundtrip,
                           scores)
from tools.models import fetch, forward, tokenizer

MODEL = fetch.model_path("smollm2-135m")
TEXTS = {"wiki": "tools/models/testdata/wikitext2_test_head.txt", "licence": "LICENSE"}
TOKENS = 512
built_package.use()


@unittest.skipUnless(MODEL.exists(), f"SmolLM2-135M is not fetched: {MODEL} does not exist")
@unittest.skipUnless("KVCASKD" in os.environ, "KVCASKD and KVCASK name no binaries")
class SmolLm2Check(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        tok = tokenizer.Tokenizer.from_gguf(MODEL)
        cls.passages = [types.SimpleNamespace(kind=kind, ids=tok.encode(
            pathlib.Path(file).read_text())[:TOKENS]) for kind, file in TEXTS.items()]
        assert all(len(p.ids) == TOKENS for p in cls.passages), [len(p.ids) for p in cls.passages]
        cls.model = forward.Model.from_gguf(MODEL)

    def run_codecs(self, specs, passages):
        def make(name, quality, profile):
            if python_client.available():
                return python_client.ClientDaemon(server, name, quality, profile)
            return roundtrip.Daemon(server, name, quality, profile, os.environ["KVCASK"])

        with tempfile.TemporaryDirectory() as tmp, daemon.running(os.environ["KVCASKD"]) as server:
            found = results.Results(pathlib.Path(tmp) / "results.jsonl")
            found.start_run(1, "cpu")
            evaluate.evaluate(self.model, passages, [evaluate.make_codec(s, make) for s in specs],
                              ["kv"], ["prefix"], found, TOKENS, 1, io.StringIO())
        return found

    def test_exact_is_exact_int8_is_close_and_faults_are_rejected(self):
        found = self.run_codecs(["identity", "raw", "int8", "raw+shifted-key",
                                 "int8+scaled-value", "int8+wrong-mean"], self.passages)
        out = {}
        for key, (rows, lossless) in found.groups().items():
            s = scores.summarise(rows)
            out[key[5]] = s
            print(f"{key[5]}: ratio {s.ratio:.3f}, KLD {s.kld:.6f}, dPPL {s.dppl:+.4f} %, top-1 "
                  f"{s.top1:.2f} %, {scores.verdict(s, lossless)} {list(s.faults)[:1]}")
            self.assertEqual(scores.verdict(s, lossless),
                             "REJECT" if "+" in key[5] else "ACCEPT", key[5])
        self.assertEqual(len(out), 6)
        for exact in ("identity", "raw"):
            self.assertEqual((out[exact].dppl, out[exact].kld, out[exact].top1), (0, 0, 100))
        self.assertGreater(out["int8"].kld, 0)
        self.assertLess(out["int8"].kld, 0.001)
        self.assertGreater(out["int8"].ratio, 1.9)
        # what no bound on the loss would have seen
        self.assertLess(out["raw+shifted-key"].kld, 0.0005)

    def test_the_same_seed_gives_the_same_figures_twice(self):
        rows = lambda: self.run_codecs(["int8"], self.passages[:1]).rows
        self.assertEqual(rows(), rows())


if __name__ == "__main__":
    unittest.main()
