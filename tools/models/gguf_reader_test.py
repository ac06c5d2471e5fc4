import pathlib
import tempfile
import unittest

import gguf
import torch

from tools.models import cache, forward, gguf_reader, random_model, tokenizer


def write_gguf(path, arch, weights, **changes):
    """A GGUF of random_model's sizes, as llama.cpp's converter lays it out."""
    c = random_model.config(arch)
    w = gguf.GGUFWriter(str(path), arch)
    w.add_name(c.name)
    w.add_context_length(c.context)
    w.add_embedding_length(c.hidden)
    w.add_block_count(len(c.layers))
    w.add_feed_forward_length(c.ffn)
    w.add_head_count(c.q_heads)
    w.add_head_count_kv(c.kv_heads)
    w.add_key_length(c.head_dim)
    w.add_layer_norm_rms_eps(c.norm_eps)
    w.add_rope_freq_base(c.layers[-1].rope.theta)
    if c.layers[0].window:
        w.add_sliding_window(c.layers[0].window)
    letters = [chr(ord("a") + i) for i in range(26)]
    tokens = letters + ["ab", "abc"] + [f"<{i}>" for i in range(c.vocab - 28)]
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(tokens)
    w.add_token_types([1] * 28 + [3] * (c.vocab - 28))
    w.add_token_merges(["a b", "ab c"])
    for key, value in changes.items():
        w.add_string(f"{arch}.{key.replace('__', '.')}", value)
    for name, x in weights.items():
        if arch == "llama" and "attn_q." in name:
            x = gguf_reader.permute(x, c.q_heads)
        if arch == "llama" and "attn_k." in name:
            x = gguf_reader.permute(x, c.kv_heads)
        w.add_tensor(name, x.contiguous().numpy())
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


class GgufReaderTest(unittest.TestCase):
    def setUp(self):
        self._tmp = tempfile.TemporaryDirectory()
        self.addCleanup(self._tmp.cleanup)
        self.path = pathlib.Path(self._tmp.name) / "m.gguf"

    def test_a_model_comes_back_as_it_was_written(self):
        for arch in ("llama", "qwen2", "qwen3", "gemma3"):
            weights = {k: v.bfloat16().float()
                       for k, v in random_model.weights(random_model.config(arch), 5).items()}
            write_gguf(self.path, arch, weights)
            read = forward.Model.from_gguf(self.path)
            self.assertEqual(read.config, random_model.config(arch))
            ids = random_model.tokens(1, 12)
            direct = forward.Model(random_model.config(arch), weights)
            self.assertTrue(torch.equal(read.forward(ids), direct.forward(ids)), arch)
            kept = self.path.with_name("m.gguf.weights.safetensors")
            self.assertTrue(kept.exists())
            again = forward.Model.from_gguf(self.path)
            self.assertTrue(torch.equal(again.forward(ids), direct.forward(ids)), arch)
            kept.unlink()

    def test_unpermute_undoes_permute(self):
        x = torch.arange(4 * 6 * 3.0).view(24, 3)
        self.assertFalse(torch.equal(gguf_reader.permute(x, 4), x))
        self.assertTrue(torch.equal(gguf_reader.unpermute(gguf_reader.permute(x, 4), 4), x))

    def test_a_rope_scaling_it_cannot_do_is_refused_by_name(self):
        weights = random_model.weights(random_model.config("qwen2"), 5)
        write_gguf(self.path, "qwen2", weights, rope__scaling__type="yarn")
        with self.assertRaisesRegex(ValueError, "'yarn' is not supported"):
            gguf_reader.GgufFile(self.path).config()

    def test_the_tokenizer_merges_and_reads_control_tokens_only_when_asked(self):
        write_gguf(self.path, "qwen2", random_model.weights(random_model.config("qwen2"), 5))
        tok = tokenizer.Tokenizer.from_gguf(self.path)
        self.assertEqual(tok.encode("abcab"), [27, 26])
        self.assertEqual(tok.encode("a<3>", special=True), [0, 31])
        self.assertNotIn(31, tok.encode("a<3>"))
        self.assertEqual(tok.decode([27, 31, 26]), "abcab")


class CacheTest(unittest.TestCase):
    def setUp(self):
        self._tmp = tempfile.TemporaryDirectory()
        self.addCleanup(self._tmp.cleanup)
        self.path = pathlib.Path(self._tmp.name) / "c.safetensors"

    def test_a_cache_comes_back_bit_for_bit_with_its_geometry(self):
        for arch in ("llama", "gemma3"):
            model = random_model.model(arch)
            ids = random_model.tokens(1, 20)
            run = model.run(ids, keep_cache=True)
            cache.write(self.path, model.config, run.cache, ids[0].tolist(), extra={"seed": "2"})
            back = cache.read(self.path)
            self.assertEqual(back.token_ids.tolist(), ids[0].tolist())
            self.assertEqual(back.metadata["rope"], "rotate_half")
            self.assertEqual(back.metadata["seed"], "2")
            self.assertEqual("geometry" in back.metadata, arch == "gemma3")
            for (k, v), (k2, v2) in zip(run.cache, back.batched()):
                self.assertTrue(torch.equal(k, k2) and torch.equal(v, v2))

    def test_a_cache_of_another_shape_is_refused(self):
        model = random_model.model("llama")
        run = model.run(random_model.tokens(1, 20), keep_cache=True)
        with self.assertRaisesRegex(ValueError, r"k.00 is \(2, 20, 16\), expected \(2, 19, 16\)"):
            cache.write(self.path, model.config, run.cache, list(range(19)))

    def test_the_geometry_names_runs_of_equal_layers(self):
        layers = random_model.config("gemma3").geometry()["layers"]
        self.assertEqual([(x["repeat"], x["kind"], x.get("window")) for x in layers],
                         [(5, "sliding", 8), (1, "full", None)])
        self.assertEqual(layers[1]["rope"], {"style": "rotate_half", "dims": 16, "theta": 1e6})


if __name__ == "__main__":
    unittest.main()
