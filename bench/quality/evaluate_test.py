"""The harness on small random models: what must be zero is, what is broken is seen."""

import io
import json
import pathlib
import re
import stat
import tempfile
import types
import unittest
from xml.etree import ElementTree

import numpy as np
import safetensors.numpy
import torch

from bench.quality import audit, curves, evaluate, protocols, report, results, roundtrip, scores
from tools.models import cache as cache_files
from tools.models import random_model

PASSAGES = [types.SimpleNamespace(kind=kind, ids=random_model.tokens(1, 40, seed)[0].tolist())
            for seed, kind in enumerate(("wiki", "code", "wiki"))]


def no_daemon(name, quality, profile):
    raise AssertionError("no daemon in this test")


class HarnessTest(unittest.TestCase):
    def setUp(self):
        tmp = tempfile.TemporaryDirectory()
        self.addCleanup(tmp.cleanup)
        self.folder = pathlib.Path(tmp.name)
        self.said = io.StringIO()

    def run_all(self, specs, protocol_names=("prefix",), names=("kv",), arch="qwen2",
                passages=PASSAGES, file="results.jsonl"):
        found = results.Results(self.folder / file)
        found.start_run(7, "cpu")
        codecs = [evaluate.make_codec(s, no_daemon) if isinstance(s, str) else s for s in specs]
        evaluate.evaluate(random_model.model(arch), passages, codecs, names, protocol_names,
                          found, 40, 7, self.said)
        return found

    def summaries(self, found):
        return {k[4:]: scores.summarise(v[0]) for k, v in found.groups().items()}

    def test_identity_is_exactly_zero_under_every_protocol_and_family(self):
        for arch in ("llama", "qwen2", "qwen3", "gemma3"):
            found = self.run_all(["identity"], protocols.PROTOCOLS, arch=arch, file=arch)
            out = self.summaries(found)
            self.assertEqual(set(k[0] for k in out), set(protocols.PROTOCOLS))
            for s in out.values():
                self.assertEqual((s.dppl, s.kld, s.top1, s.ratio), (0, 0, 100, 1))
                self.assertEqual(scores.verdict(s, lossless=True), "ACCEPT")

    def test_every_planted_fault_is_rejected(self):
        specs = [f"identity+{kind}" for kind in roundtrip.Fault.KINDS]
        found = self.run_all(specs, ("prefix", "whole"))
        self.assertEqual(len(found.groups()), 6)
        for key, (rows, lossless) in found.groups().items():
            s = scores.summarise(rows)
            self.assertGreater(s.kld, 0, key)
            self.assertEqual(scores.verdict(s, lossless), "REJECT", key)

    def test_fewer_bits_cost_more(self):
        out = self.summaries(self.run_all(["reference-int8", "reference-int4"],
                                          protocols.PROTOCOLS))
        for protocol in protocols.PROTOCOLS:
            fine, coarse = (out[protocol, f"reference-int{b}", "kv"] for b in (8, 4))
            self.assertGreater(coarse.kld, 10 * fine.kld)
            self.assertGreater(fine.kld, 0)
            self.assertGreater(coarse.ratio, fine.ratio)

    def test_an_audit_says_of_each_layer_and_stream_what_numpy_says(self):
        model = random_model.model("llama")
        clean = protocols.Passage(model, "whole", PASSAGES[0].ids)
        path = self.folder / "c.safetensors"
        cache_files.write(path, model.config, clean.cache, clean.token_ids)
        specs = ["identity", "reference-int8", "reference-int4", "identity+scaled-value"]
        codecs = [evaluate.make_codec(s, no_daemon) for s in specs]
        found, ratios = audit.audit(path, codecs, self.folder)
        self.assertEqual(len(found), 4 * 3 * 2)
        by_key = {(r.codec, r.layer, r.stream): r for r in found}
        original = safetensors.numpy.load_file(str(self.folder / "original.safetensors"))
        self.assertEqual(original["k.01"].dtype, np.float32)
        self.assertTrue((original["k.01"] ==
                         clean.cache[1][0].float().reshape(-1, 16).numpy()).all())
        for codec in codecs:
            decoded = safetensors.numpy.load_file(
                str(self.folder / f"{audit.file_name(codec.name)}.safetensors"))
            for (name, layer, stream), r in by_key.items():
                if name != codec.name:
                    continue
                a = original[f"{stream}.{layer:02d}"].astype(np.float64)
                b = decoded[f"{stream}.{layer:02d}"].astype(np.float64)
                self.assertAlmostEqual(r.mse, ((a - b) ** 2).mean(), delta=1e-12)
                if (a == b).all():
                    self.assertEqual((r.snr, r.correlation, r.relative_l2), (np.inf, 1, 0))
                    continue
                self.assertAlmostEqual(r.correlation, np.corrcoef(a.ravel(), b.ravel())[0, 1],
                                       delta=1e-9)
                self.assertAlmostEqual(r.snr / (a.var() / ((a - b) ** 2).mean()), 1, delta=1e-9)
                if "int" in name:
                    self.assertAlmostEqual(r.snr * (1 - r.correlation ** 2), 1, delta=.05)
        for layer in range(3):
            for stream in "kv":
                self.assertEqual(by_key["identity", layer, stream].mse, 0)
                self.assertGreater(by_key["reference-int8", layer, stream].snr,
                                   100 * by_key["reference-int4", layer, stream].snr)
        changed = [k for k, r in by_key.items() if k[0] == "identity+scaled-value" and r.mse > 0]
        self.assertEqual([k[2] for k in changed], ["v"], "one layer's values and nothing else")
        lines = list(audit.markdown(found, ratios))
        self.assertEqual(len([x for x in lines if x.startswith("| ")]), 2 * (1 + 3) + 1 + 3)
        self.assertIn("| reference-int4 | exact | exact |", lines)
        # Against a codec that has an error, and of the first tokens alone.
        part, _ = audit.audit(path, codecs[1:3], tokens=5)
        mse = {(r.codec, r.layer): r.mse for r in part if r.stream == "v"}
        decoded = safetensors.numpy.load_file(str(self.folder / "reference-int4.safetensors"))
        shape = clean.cache[1][1].shape
        error = (decoded["v.01"] - original["v.01"]).astype(np.float64).reshape(shape)[:, :5]
        self.assertAlmostEqual(mse["reference-int4", 1], (error ** 2).mean(), delta=1e-12)
        shares = [mse["reference-int4", i] / mse["reference-int8", i] for i in range(3)]
        line = next(x for x in audit.markdown(part, {c.name: 1.0 for c in codecs[1:3]})
                    if x.startswith("| reference-int4"))
        self.assertTrue(line.endswith(
            f"| {np.median(shares):.3f} ({min(shares):.3f} to {max(shares):.3f}), 0 of 3 |"), line)

    def test_k_alone_and_v_alone_replace_only_their_stream(self):
        model = random_model.model("llama")
        clean = protocols.Passage(model, "prefix", PASSAGES[0].ids)
        other = [(k + 1, v + 1) for k, v in clean.cache]
        for streams, layers, changed in (("k", None, {(i, 0) for i in range(3)}),
                                         ("v", {1}, {(1, 1)}),
                                         ("kv", {0, 2}, {(i, s) for i in (0, 2) for s in (0, 1)})):
            mixed = protocols.pick(clean.cache, other, streams, layers)
            found = {(i, s) for i in range(3) for s in (0, 1)
                     if not torch.equal(mixed[i][s], clean.cache[i][s])}
            self.assertEqual(found, changed)

    def test_the_compounding_of_layers_is_reported(self):
        found = self.run_all(["reference-int4"], names=("kv", "k", "v", "layers", "first"))
        table = report.build(found)["tables"][0]
        c, = table["compounding"]
        single = [r for r in table["rows"] if r["variant"].startswith("layer:")]
        self.assertEqual(len(single), 3)
        self.assertAlmostEqual(c["sum_kld"], sum(r["kld"] for r in single))
        self.assertGreater(c["all_kld"], max(0, *(r["kld"] for r in single)) * 0.5)
        self.assertEqual({r["variant"] for r in table["rows"]},
                         {"kv", "k", "v", "layer:0", "layer:1", "layer:2", "first:1", "first:2"})

    def test_scores_agree_with_the_definitions(self):
        model = random_model.model("qwen3")
        ids = PASSAGES[0].ids
        clean = protocols.Passage(model, "prefix", ids)
        decoded = roundtrip.ScalarReference(4)(model.config, clean.cache, clean.token_ids)
        got = clean.score(decoded.layers, "wiki", 0, 1, 1)
        tokens = torch.tensor([ids])
        p, q = (torch.softmax(model.forward(
            tokens[:, 30:39], past=[(k[None], v[None]) for k, v in c])[0].double(), -1)
            for c in (clean.cache, decoded.layers))
        self.assertEqual(len(got.kl), 9)  # 40 tokens, 30 in the prefix, the first is its own
        for t in range(9):
            self.assertAlmostEqual(got.kl[t], float((p[t] * (p[t] / q[t]).log()).sum()), places=5)
        dnll = sum(float((p[t, ids[31 + t]] / q[t, ids[31 + t]]).log()) for t in range(9)) / 9
        self.assertAlmostEqual(got.dnll, dnll, places=5)
        self.assertAlmostEqual(got.top1, float((p.argmax(-1) == q.argmax(-1)).double().mean()))

    def test_the_same_seed_gives_the_same_figures_twice(self):
        a = self.run_all(["reference-int4"], protocols.PROTOCOLS, file="a").rows
        b = self.run_all(["reference-int4"], protocols.PROTOCOLS, file="b").rows
        self.assertEqual(a, b)

    def test_a_stopped_run_goes_on_where_it_was(self):
        whole = self.run_all(["reference-int4"], file="whole")
        path = self.folder / "stopped.jsonl"
        lines = whole.path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:2]) + lines[2][:50])  # stopped while it wrote
        counted = roundtrip.ScalarReference(4)
        calls = []
        counted_call = lambda *args: calls.append(1) or counted(*args)
        codec = type("Counted", (), {"name": counted.name, "lossless": False,
                                     "layer_local": True, "__call__": lambda s, *a: counted_call(*a)})()
        again = self.run_all([codec], file="stopped.jsonl")
        self.assertEqual(len(calls), 2)
        strip = lambda rows: [{k: v for k, v in r.items() if k != "run_number"} for r in rows]
        self.assertEqual(strip(again.rows), strip(whole.rows))
        self.assertEqual(strip(results.Results(path).rows), strip(whole.rows))

    def test_a_damaged_results_file_is_refused(self):
        path = self.folder / "bad.jsonl"
        path.write_bytes(b'{"run": 0}\nnonsense\n{"run": 1}\n')
        with self.assertRaisesRegex(ValueError, "byte 11: not a JSON line"):
            results.Results(path)

    def test_the_report_holds_a_picture_and_the_provenance(self):
        found = self.run_all(["identity", "reference-int8", "reference-int4"], names=("kv", "layers"))
        report.write(report.build(found), self.folder)
        page = (self.folder / "report.html").read_text()
        pictures = page.split("<svg")[1:]
        self.assertEqual(len(pictures), 2)
        for picture in pictures:
            ElementTree.fromstring("<svg" + picture.split("</svg>")[0] + "</svg>")
        table = (self.folder / "report.md").read_text()
        self.assertIn("| identity | 1.00 | 16.000 | 0.000 ± 0.000 |", table)
        self.assertIn("seed 7", table)
        written = json.loads((self.folder / "report.json").read_text())
        self.assertRegex(written["runs"][0]["machine"], "cores")
        self.assertEqual(set(written["tables"][0]["rows"][0]["by_kind"]), {"wiki", "code"})

    def test_several_files_make_one_report_and_a_score_counts_once(self):
        coarse, plain = self.run_all(["reference-int4"]), self.run_all(["identity"], file="other")
        table, = report.build([plain, coarse])["tables"]
        self.assertEqual([r["codec"] for r in table["rows"]], ["identity", "reference-int4"])
        with self.assertRaisesRegex(ValueError, "another file"):
            report.build([plain, plain])
        # steps of a plan have passages of their own, so the same codec may be in two
        steps = report.build([plain, plain], ["whole", "prefix"])["tables"]
        self.assertEqual([t["step"] for t in steps], ["prefix", "whole"])

    def test_reports_gather_what_lies_below(self):
        for name in ("m/prefix", "m/whole"):
            (self.folder / name).mkdir(parents=True)
            self.run_all(["identity"], file=f"{name}/results.jsonl")
        found, labels, rows = report.gather([self.folder])
        self.assertEqual((len(found), labels, rows), (2, ["prefix", "whole"], []))
        docs = self.folder / "docs"
        docs.mkdir()
        report.write_docs(report.build(found, labels), docs / "q.md", docs / "data")
        text = (docs / "q.md").read_text()
        for link in re.findall(r"\]\((data/.*?)\)", text):
            ElementTree.parse(docs / link)
        with self.assertRaisesRegex(FileNotFoundError, "holds no results.jsonl"):
            report.gather([docs])

    def test_the_picture_joins_the_qualities_of_one_codec_and_profile(self):
        points = [(f"fklt-{q}@{p}", r, 0.001 * r, 0.0001, "ACCEPT") for p, r0 in (("a", 4), ("b", 8))
                  for q, r in (("near_lossless", r0), ("compact", r0 + 2))]
        picture = ElementTree.fromstring(curves.rate_quality(points + [("raw", 1, 0, 0, "ACCEPT")]))
        lines = [e.get("points").split() for e in picture.iter() if e.tag.endswith("polyline")]
        self.assertEqual(sorted(map(len, lines)), [1, 2, 2])

    def test_in_forward_is_not_applied_to_what_codes_layers_together(self):
        codec = roundtrip.Fault(roundtrip.Identity(), "scaled-value")
        found = self.run_all([codec], ("in-forward",))
        self.assertEqual(found.rows, [])
        self.assertIn("in-forward n/a", self.said.getvalue())

    def test_unknown_names_are_refused(self):
        with self.assertRaisesRegex(evaluate.UsageError, "'w' is not one of kv"):
            evaluate.variants(["w"], random_model.model("llama").config)
        with self.assertRaisesRegex(ValueError, "fault 'odd'"):
            evaluate.make_codec("identity+odd", no_daemon)


# A stand-in for the kvcask command: keeps the file it is given.
_FAKE = """#!/usr/bin/env python3
import json, os, shutil, sys
folder, args = os.path.dirname(os.path.abspath(__file__)), sys.argv[3:]
open(folder + "/log", "a").write(" ".join(args[:1]) + chr(10))
kept = folder + "/kept"
if args[0] == "put": shutil.copy(args[1], kept)
elif args[0] == "stat": print(json.dumps({"raw_bytes": %d, "stored_bytes": 1000}))
elif args[0] == "get": shutil.copy(kept, args[args.index("--out") + 1])
elif args[0] == "rm": os.remove(kept)
else: sys.exit("what is " + args[0])
"""


class CodecSpecTest(unittest.TestCase):
    def test_every_part_of_a_spec_reaches_the_daemon(self):
        made = []
        daemon = lambda *parts: made.append(parts) or roundtrip.Identity()
        evaluate.make_codec("int8", daemon)
        evaluate.make_codec("fklt:balanced@a/p-4.safetensors+wrong-mean", daemon)
        evaluate.make_codec("profile@p", daemon)
        self.assertEqual(made, [("int8", "", ""), ("fklt", "balanced", "a/p-4.safetensors"),
                                ("", "", "p")])
        self.assertEqual(roundtrip.daemon_name("fklt", "balanced", "a/p-4.safetensors"),
                         "fklt-balanced@p-4")


class DaemonRoundtripTest(unittest.TestCase):
    def setUp(self):
        tmp = tempfile.TemporaryDirectory()
        self.addCleanup(tmp.cleanup)
        self.folder = pathlib.Path(tmp.name)
        self.model = random_model.model("llama")
        self.clean = protocols.Passage(self.model, "prefix", PASSAGES[0].ids)

    def daemon(self, raw):
        command = self.folder / "kvcask"
        command.write_text(_FAKE % raw)
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
        return roundtrip.Daemon("unix:/nowhere", "int8", "balanced", command=str(command))

    def test_the_cache_goes_out_and_comes_back_and_is_deleted(self):
        codec = self.daemon(roundtrip.raw_bytes(self.clean.cache))
        decoded = codec(self.model.config, self.clean.cache, self.clean.token_ids)
        for (a, b), (c, d) in zip(decoded.layers, self.clean.cache):
            self.assertTrue(torch.equal(a, c) and torch.equal(b, d))
        self.assertEqual((decoded.stored_bytes, codec.name), (1000, "int8-balanced"))
        self.assertEqual((self.folder / "log").read_text().split(), ["put", "stat", "get", "rm"])

    def test_a_daemon_that_counts_other_bytes_is_an_error(self):
        with self.assertRaisesRegex(roundtrip.RoundtripError, "counts 5 raw bytes, expected"):
            self.daemon(5)(self.model.config, self.clean.cache, self.clean.token_ids)
        self.assertFalse((self.folder / "kept").exists())

    def test_a_missing_command_is_named(self):
        codec = roundtrip.Daemon("unix:/nowhere", "int8", command="/no/such/kvcask")
        with self.assertRaisesRegex(roundtrip.RoundtripError, "/no/such/kvcask"):
            codec(self.model.config, self.clean.cache, self.clean.token_ids)


if __name__ == "__main__":
    unittest.main()
