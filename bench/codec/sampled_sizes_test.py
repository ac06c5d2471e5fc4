"""The arithmetic of sampled_sizes, and the whole of it against a stand-in for the command."""

import contextlib
import io
import json
import pathlib
import struct
import sys
import tempfile
import unittest
from unittest import mock

from bench.codec import sampled_sizes

# Sizes by the text of a file: 100 bytes a token for wiki, 200 for code, and 1 more a passage.
# As the command does, it projects a size for each sample, and says their mean and intervals.
_COMMAND = """#!{python}
import json, pathlib, statistics, sys
args = sys.argv[1:]
files = [args[i + 1] for i, a in enumerate(args) if a == "--like"]
for t in (int(args[i + 1]) for i, a in enumerate(args) if a == "--tokens"):
    sizes = []
    for f in files:
        kind, number = pathlib.Path(f).stem.split("-")
        sizes.append(t * ({{"wiki": 100, "code": 200}}[kind] + int(number)))
    row = {{"tokens": t, "ratio": 2, "stored_bytes": statistics.mean(sizes)}}
    if len(sizes) > 1:
        s = 12.706 * statistics.stdev(sizes)
        row["interval_one_session_bytes"] = s * 1.5 ** .5 * {factor}
        row["interval_mean_bytes"] = s / 2 ** .5
    rows = globals().setdefault("rows", [])
    rows.append(row)
print(json.dumps(rows))
"""


class SampledSizesTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def cache(self, name, tokens):
        header = json.dumps({"k.00": {"shape": [1, tokens, 4]}}).encode()
        path = self.folder / f"{name}.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header)
        return str(path)

    def run_with(self, caches, factor=1):
        command = self.folder / "kvcask"
        command.write_text(_COMMAND.format(python=sys.executable, factor=factor))
        command.chmod(0o755)
        out = io.StringIO()
        with mock.patch.object(sys, "argv", [
                "sampled_sizes", "--kvcask", str(command), "--profile", "a/m-0.5b.safetensors",
                "--quality", "balanced", *caches]), contextlib.redirect_stdout(out):
            sampled_sizes.main()
        return [[c.strip() for c in line.strip("|").split("|")]
                for line in out.getvalue().splitlines()[2:]]

    def test_intervals_are_students(self):
        mean, one, many = sampled_sizes.foretold([10, 12, 14])
        self.assertEqual(mean, 12)
        self.assertAlmostEqual(one, 4.303 * 2 * (4 / 3) ** .5, places=9)
        self.assertAlmostEqual(many, 4.303 * 2 / 3 ** .5, places=9)
        self.assertAlmostEqual(sampled_sizes.student_t95(60), 2.000, delta=.001)
        self.assertAlmostEqual(sampled_sizes.student_t95(21), 2.080, delta=.001)

    def test_kinds_alike_are_foretold_and_mixtures_of_unlike_ones_widely(self):
        caches = [self.cache(f"{kind}-{i}", 256) for kind in ("wiki", "code") for i in range(4)]
        same, mixed = self.run_with(caches)
        self.assertEqual(same[:4], ["m-0.5b", "balanced", "same kind", "8"])
        self.assertEqual(same[5:8], ["100 % of 12 cuts", "8 of 8", "8 of 8"])
        self.assertEqual(mixed[2], "mixed")
        self.assertEqual(mixed[5:8], ["100 % of 36 cuts", "0 of 8", "8 of 8"])
        self.assertGreater(float(mixed[8].rstrip(" %")), 80)

    def test_a_longer_cache_is_foretold_by_the_shorter_ones_of_its_kind(self):
        caches = [self.cache(f"wiki-{i}", 256) for i in range(3)] + [self.cache("wiki-9", 1024)]
        rows = self.run_with(caches)
        self.assertEqual([r[2] for r in rows], ["same kind", "mixed", "longer"])
        self.assertEqual(rows[2][6], "0 of 1", "109 bytes a token where 100 to 102 were seen")
        self.assertEqual(rows[2][7], "0 of 1")

    def test_a_command_that_says_another_interval_is_an_error(self):
        caches = [self.cache(f"wiki-{i}", 256) for i in range(3)]
        with self.assertRaises(SystemExit) as stopped:
            self.run_with(caches, factor=1.01)
        self.assertIn("its definition", str(stopped.exception))


if __name__ == "__main__":
    unittest.main()
