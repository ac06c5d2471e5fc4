import os
import pathlib
import stat
import tempfile
import unittest

from bench.quality import daemon, roundtrip


class DaemonTest(unittest.TestCase):
    def setUp(self):
        tmp = tempfile.TemporaryDirectory()
        self.addCleanup(tmp.cleanup)
        self.path = pathlib.Path(tmp.name) / "kvcaskd"

    def binary(self, text):
        self.path.write_text("#!/bin/sh\n" + text)
        self.path.chmod(self.path.stat().st_mode | stat.S_IXUSR)
        return str(self.path)

    def test_it_gives_the_address_and_ends_the_daemon(self):
        pid_file = self.path.with_name("pid")
        script = f'echo $$ > {pid_file}; echo kvcaskd; echo "listening $2"; exec sleep 1000\n'
        with daemon.running(self.binary(script)) as address:
            self.assertTrue(address.startswith("unix:/tmp/"))
            pid = int(pid_file.read_text())
            os.kill(pid, 0)
        self.assertRaises(ProcessLookupError, os.kill, pid, 0)

    def test_a_daemon_that_ends_at_once_shows_its_log(self):
        with self.assertRaisesRegex(roundtrip.RoundtripError, r"exit code 3\): bad flag"):
            with daemon.running(self.binary("echo bad flag >&2; exit 3\n")):
                self.fail("it runs")

    def test_a_missing_binary_is_named(self):
        with self.assertRaisesRegex(roundtrip.RoundtripError, "/no/such/kvcaskd"):
            with daemon.running("/no/such/kvcaskd"):
                self.fail("it runs")


if __name__ == "__main__":
    unittest.main()
