"""The harness on a small random model through a real kvcaskd and the kvcask command.

$KVCASKD and $KVCASK name the binaries, $KVCASK_PB2 the client's generated code (Bazel sets
them)."""

import os
import pathlib
import tempfile
import types
import unittest

import torch

from bench.quality import (built_package, daemon, evaluate, protocols, python_client, results, roundtrip,
                           scores)
from tools.models import random_model

built_package.use()


@unittest.skipUnless("KVCASKD" in os.environ, "KVCASKD and KVCASK name no binaries")
class RealDaemonTest(unittest.TestCase):
    def make(self, *args):
        return roundtrip.Daemon(*args, command=os.environ["KVCASK"])

    def test_raw_is_exact_int8_is_close_and_bits_are_the_daemons(self):
        passages = [types.SimpleNamespace(kind="random",
                                          ids=random_model.tokens(1, 240, seed)[0].tolist())
                    for seed in range(2)]
        with tempfile.TemporaryDirectory() as tmp, daemon.running(os.environ["KVCASKD"]) as server:
            make = lambda name, quality, profile: self.make(server, name, quality, profile)
            codecs = [evaluate.make_codec(s, make) for s in ("raw", "int8", "raw+scaled-value")]
            found = results.Results(pathlib.Path(tmp) / "results.jsonl")
            found.start_run(1, "cpu")
            evaluate.evaluate(random_model.model("qwen2"), passages, codecs, ["kv"],
                              ["prefix", "whole"], found, 240, 1)
        out = {key[4:6]: (scores.summarise(rows), lossless)
               for key, (rows, lossless) in found.groups().items()}
        self.assertEqual(len(out), 6)
        for protocol in ("prefix", "whole"):
            raw, lossless = out[protocol, "raw"]
            self.assertTrue(lossless)
            self.assertEqual((raw.dppl, raw.kld, raw.top1), (0, 0, 100))
            self.assertGreater(raw.bits, 16)  # headers count
            self.assertLess(raw.bits, 18)
            int8, _ = out[protocol, "int8"]
            self.assertEqual(int8.faults, ())
            self.assertGreater(int8.kld, 0)
            self.assertLess(int8.kld, 0.05)
            self.assertLess(int8.bits, raw.bits)
            self.assertEqual(scores.verdict(*out[protocol, "raw+scaled-value"]), "REJECT")


@unittest.skipUnless(python_client.available(), "the package kvcask is not installed")
class RealDaemonThroughThePackageTest(RealDaemonTest):
    def make(self, *args):
        return python_client.ClientDaemon(*args)

    def test_a_layer_goes_through_the_daemon_alone_for_in_forward(self):
        model = random_model.model("qwen2")
        ids = random_model.tokens(1, 140)[0].tolist()
        with daemon.running(os.environ["KVCASKD"]) as server:
            clean = protocols.Passage(model, "in-forward", ids)
            raw, int8 = (clean.score_in_forward(self.make(server, name, "", ""), "random", 0)
                         for name in ("raw", "int8"))
        self.assertEqual((raw.kld, raw.dnll, raw.top1), (0, 0, 1))
        self.assertGreater(int8.kld, 0)
        self.assertLess(int8.kld, 0.05)
        self.assertLess(int8.stored_bytes, 0.7 * raw.stored_bytes)

    def test_what_the_daemon_says_of_its_codecs(self):
        with daemon.running(os.environ["KVCASKD"]) as server:
            by_package = python_client.served(server)
            by_command = roundtrip.served(server, os.environ["KVCASK"])
        self.assertEqual(set(by_package), set(by_command))
        for name, about in by_command.items():
            other = by_package[name]
            self.assertEqual((other.needs_profile, other.lossless, tuple(other.qualities)),
                             (about.needs_profile, about.lossless, about.qualities), name)
        self.assertTrue(by_command["fklt"].needs_profile)
        self.assertTrue(by_command["raw"].lossless)

    def test_windows_and_rotations_of_layers_reach_the_daemon(self):
        model = random_model.model("gemma3")
        with daemon.running(os.environ["KVCASKD"]) as server:
            clean = protocols.Passage(model, "prefix", random_model.tokens(1, 200)[0].tolist())
            decoded = self.make(server, "raw", "", "")(model.config, clean.cache, clean.token_ids)
        for (a, b), (c, d) in zip(decoded.layers, clean.cache):
            self.assertTrue(torch.equal(a, c) and torch.equal(b, d))
        proto = python_client.geometry(model.config).proto
        self.assertEqual([layer.window for layer in proto.layers], [8] * 5 + [0])
        self.assertEqual(len({tuple(layer.rope.inverse_frequencies) for layer in proto.layers}), 2)


if __name__ == "__main__":
    unittest.main()
