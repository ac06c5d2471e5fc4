"""The harness on a small random model through a real kvcaskd and the kvcask command.

$KVCASKD and $KVCASK name the binaries (Bazel sets them)."""

import os
import pathlib
import tempfile
import types
import unittest

from bench.quality import daemon, evaluate, results, roundtrip, scores
from tools.models import random_model


@unittest.skipUnless("KVCASKD" in os.environ, "KVCASKD and KVCASK name no binaries")
class RealDaemonTest(unittest.TestCase):
    def test_raw_is_exact_int8_is_close_and_bits_are_the_daemons(self):
        passages = [types.SimpleNamespace(kind="random",
                                          ids=random_model.tokens(1, 240, seed)[0].tolist())
                    for seed in range(2)]
        with tempfile.TemporaryDirectory() as tmp, daemon.running(os.environ["KVCASKD"]) as server:
            make = lambda name, quality: roundtrip.Daemon(server, name, quality,
                                                          command=os.environ["KVCASK"])
            codecs = [evaluate.make_codec(s, make) for s in ("raw", "int8", "raw+scaled-value")]
            found = results.Results(pathlib.Path(tmp) / "results.jsonl")
            found.start_run(1, "cpu")
            evaluate.evaluate(random_model.model("qwen2"), passages, codecs, ["kv"],
                              ["prefix", "whole"], found, 240, 1)
        out = {key[3:5]: (scores.summarise(rows), lossless)
               for key, (rows, lossless) in found.groups().items()}
        self.assertEqual(len(out), 6)
        for protocol in ("prefix", "whole"):
            raw, lossless = out[protocol, "raw"]
            self.assertTrue(lossless)
            self.assertEqual((raw.dppl, raw.kld, raw.top1), (0, 0, 100))
            self.assertGreater(raw.bits, 16)  # headers count
            self.assertLess(raw.bits, 18)
            int8, _ = out[protocol, "int8"]
            self.assertGreater(int8.kld, 0)
            self.assertLess(int8.kld, 0.05)
            self.assertLess(int8.bits, raw.bits)
            self.assertEqual(scores.verdict(*out[protocol, "raw+scaled-value"]), "REJECT")


if __name__ == "__main__":
    unittest.main()
