import io
import pathlib
import random
import re
import tempfile
import types
import unittest

import torch

from bench.quality import needles, roundtrip

PROSE = "It was a bright day in April and the clocks were striking. " * 200


class Letters:
    """A tokenizer of one id a character."""

    def encode(self, text, add_bos=None, special=False):
        return [ord(c) for c in text]

    def decode(self, ids):
        return "".join(chr(i) for i in ids)


class Oracle:
    """A model whose cache is its text, one element a token, and that finds the number asked
    for in that cache, `errs` times wrongly."""

    device = torch.device("cpu")
    config = types.SimpleNamespace(name="oracle", layers=[None])

    def __init__(self, errs=0):
        self.errs = errs

    def run(self, tokens, keep_cache):
        k = tokens[0, None, :, None].float()[None].bfloat16()  # exact up to 256
        return types.SimpleNamespace(cache=[(k, k.clone())])

    def generate(self, tokens, count, past):
        text = "".join(chr(int(x)) for x in past[0][0].flatten())
        asked = re.search(r"number of (\w+) is$", Letters().decode(tokens[0].tolist())).group(1)
        if self.errs > 0:
            self.errs -= 1
            return Letters().encode(" I do not know")
        found = re.search(rf"number of {asked} is (\d+)", text)
        return Letters().encode(" " + found.group(1) if found else "nothing")[:count]


class Forgetful(roundtrip.Identity):
    name = "forgetful"

    def __call__(self, config, layers, token_ids):
        decoded = super().__call__(config, layers, token_ids)
        decoded.layers = [(k * 0, v) for k, v in decoded.layers]
        decoded.stored_bytes //= 4
        return decoded


class NeedlesTest(unittest.TestCase):
    def test_the_prompt_has_its_length_and_every_needle_whole(self):
        for seed in range(20):
            prefix, question, number = needles.make_prompt(Letters(), PROSE, 600,
                                                           random.Random(seed))
            text = Letters().decode(prefix)
            self.assertEqual(len(prefix), 600)
            self.assertEqual(len(re.findall(r" is (\d{7})\. ", text)), needles.NEEDLES)
            asked = re.search(r"number of (\w+)\?", Letters().decode(question)).group(1)
            self.assertIn(f"The magic number of {asked} is {number}. ", text)

    def test_a_context_without_room_is_refused(self):
        with self.assertRaisesRegex(ValueError, "no room for 4 needles"):
            needles.make_prompt(Letters(), PROSE, 100, random.Random(1))
        with self.assertRaisesRegex(ValueError, "too short"):
            needles.make_prompt(Letters(), "short", 600, random.Random(1))

    def measure(self, errs, jobs=1, stop_after=None):
        with tempfile.TemporaryDirectory() as tmp:
            text = pathlib.Path(tmp) / "prose.txt"
            text.write_text(PROSE)
            found = needles.Trials(pathlib.Path(tmp) / "needles.jsonl")
            again = needles.Trials(found.path)
            for trials in [t for t in (stop_after, 10) if t]:
                again = needles.Trials(found.path)  # as a later command would find it
                rows = needles.measure(Oracle(errs), Letters(), [f"book={text}"], [500], trials,
                                       [roundtrip.Identity(), Forgetful()], 3, again, jobs,
                                       progress=io.StringIO())
            return rows, needles.Trials(found.path).rows

    def test_a_codec_that_forgets_is_found_out(self):
        (identity, forgetful), _ = self.measure(errs=0)
        self.assertEqual((identity["clean"], identity["found"], identity["ratio"]), (10, 10, 1))
        self.assertEqual((forgetful["found"], forgetful["ratio"], forgetful["scored"]),
                         (0, 4, True))

    def test_a_model_that_fails_uncompressed_is_not_scored_and_said_so(self):
        (row,), trials = self.measure(errs=30)
        self.assertEqual((row["clean"], row["trials"], row["scored"], row["found"], row["ratio"]),
                         (0, 10, False, None, None))
        self.assertEqual({t["codec"] for t in trials}, {needles.CLEAN})
        self.assertIn("not scored", needles.table([row])[-1])

    def test_trials_do_not_depend_on_the_jobs_or_on_a_stop(self):
        _, whole = self.measure(errs=0)
        key = lambda t: (t["trial"], t["codec"])
        for other in (dict(jobs=3), dict(stop_after=4)):
            _, trials = self.measure(errs=0, **other)
            self.assertEqual(sorted(trials, key=key), sorted(whole, key=key))
        self.assertEqual(len(whole), 30)


if __name__ == "__main__":
    unittest.main()
