"""What the command says when it cannot do what was asked."""

import contextlib
import io
import os
import tempfile
import unittest
from unittest import mock

from tools.calibrate import __main__ as command


def said(arguments):
    """The message that `python3 -m tools.calibrate` ends with."""
    with mock.patch("sys.argv", ["calibrate"] + arguments), \
            contextlib.redirect_stderr(io.StringIO()):
        try:
            command.main()
        except SystemExit as e:
            return str(e)
    return ""


class ErrorsTest(unittest.TestCase):
    def test_an_unknown_model_is_refused_with_the_known_ones(self):
        message = said(["no-such-model", "--text", "a=b", "--out", "o"])
        self.assertIn("no-such-model", message)
        self.assertIn("smollm2-135m", message)

    def test_several_partitions_need_a_place_in_the_name(self):
        self.assertIn("{groups}", said(["smollm2-135m", "--text", "a=b", "--groups", "layer,4",
                                        "--out", "o"]))

    def test_guardrails_need_the_command_that_codes(self):
        self.assertIn("--kakeya", said(["smollm2-135m", "--text", "a=b", "--guardrails", "g",
                                        "--out", "o"]))

    def test_a_text_file_that_is_not_there_is_named(self):
        with tempfile.TemporaryDirectory() as tmp:
            missing = os.path.join(tmp, "none.txt")
            with mock.patch("tools.models.fetch.resolve", side_effect=lambda name: name):
                self.assertIn(missing, said(["m", "--text", f"a={missing}", "--out", "o"]))


if __name__ == "__main__":
    unittest.main()
