"""The forward pass against transformers, on small random weights, through hf_export."""

import json
import pathlib
import tempfile
import unittest

import torch

from tools.models import forward, hf_export, random_model

try:
    import transformers
except ImportError as e:
    print(f"SKIPPED: parity with transformers: {e}")
    transformers = None


class WeightNamesTest(unittest.TestCase):
    def test_every_tensor_gets_its_own_name(self):
        for arch in ("llama", "qwen2", "qwen3", "gemma3"):
            c = random_model.config(arch)
            weights = random_model.weights(c, 1)
            renamed = hf_export.hf_weights(c, weights)
            self.assertEqual(len(renamed), len(weights))
            self.assertIn("model.layers.0.self_attn.q_proj.weight", renamed)

    def test_gemma_norms_lose_their_one(self):
        c = random_model.config("gemma3")
        weights = random_model.weights(c, 1)
        renamed = hf_export.hf_weights(c, weights)
        self.assertTrue(torch.equal(renamed["model.norm.weight"] + 1,
                                    (weights["output_norm.weight"] - 1) + 1))


@unittest.skipIf(transformers is None, "transformers is not installed")
class ParityTest(unittest.TestCase):
    def test_logits_agree_with_transformers(self):
        for arch in ("llama", "qwen2", "qwen3", "gemma3"):
            c = random_model.config(arch)
            weights = random_model.weights(c, 11)
            with tempfile.TemporaryDirectory() as tmp:
                path = pathlib.Path(tmp) / "config.json"
                path.write_text(json.dumps(hf_export.hf_config(c)))
                config = transformers.AutoConfig.from_pretrained(tmp)
            config._attn_implementation = "eager"
            theirs = transformers.AutoModelForCausalLM.from_config(config).float().eval()
            missing = theirs.load_state_dict(hf_export.hf_weights(c, weights), strict=False)
            self.assertEqual(missing.unexpected_keys, [], arch)
            self.assertTrue(set(missing.missing_keys) <= {"lm_head.weight"}, missing)
            if c.tied:
                theirs.tie_weights()
            ours = forward.Model(c, weights, kv_dtype=None)
            ids = random_model.tokens(2, 40)
            with torch.no_grad():
                a, b = ours.forward(ids), theirs(ids).logits
            self.assertLess(float((a - b).abs().max()), 2e-3, arch)
            print(f"{arch}: largest logit difference from transformers "
                  f"{transformers.__version__}: {float((a - b).abs().max()):.2e}")


if __name__ == "__main__":
    unittest.main()
