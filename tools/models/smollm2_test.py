"""SmolLM2-135M against a stored sample of its logits, and its perplexity on given text.

Needs the fetched model: says so and skips when it is not in the cache folder
(python3 -m tools.models fetch smollm2-135m).
"""

import json
import pathlib
import unittest

import torch

from tools.models import fetch, forward, perplexity, tokenizer

SAMPLE = pathlib.Path(__file__).parent / "testdata" / "smollm2_logits.json"
MODEL = fetch.model_path("smollm2-135m")


def measure():
    """What the sample file holds: text, ids, logits at some places, perplexity."""
    text = TEXT.read_text(encoding="utf-8")
    ids = tokenizer.Tokenizer.from_gguf(MODEL).encode(text)
    model = forward.Model.from_gguf(MODEL)
    with torch.no_grad():
        logits = model.forward(torch.tensor([ids]))[0]
    places = [(t, int(v)) for t in range(0, len(ids), 37) for v in logits[t].topk(4).indices]
    return {"ids": ids, "logits": [[t, v, round(float(logits[t, v]), 4)] for t, v in places],
            "perplexity": perplexity.perplexity(model, ids)}


TEXT = pathlib.Path(__file__).parent / "testdata" / "wikitext2_test_head.txt"


@unittest.skipUnless(MODEL.exists(), "SmolLM2-135M is not fetched")
class SmolLm2Test(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.found, cls.expected = measure(), json.loads(SAMPLE.read_text())

    def test_the_text_gives_the_stored_ids(self):
        self.assertEqual(self.found["ids"], self.expected["ids"])

    def test_the_logits_are_the_stored_ones(self):
        # the sums' order depends on the BLAS, and a K or V near the middle of two bf16
        # values may round the other way
        for (t, v, a), (t2, v2, b) in zip(self.expected["logits"], self.found["logits"]):
            self.assertEqual(t, t2)
            self.assertLess(abs(a - b), 0.25, f"position {t}, token {v}")

    def test_the_perplexity_is_the_stored_one(self):
        print(f"SmolLM2-135M: perplexity {self.found['perplexity']:.3f} over "
              f"{len(self.found['ids'])} tokens")
        self.assertLess(abs(self.found["perplexity"] / self.expected["perplexity"] - 1), 0.01)


if __name__ == "__main__":
    unittest.main()
