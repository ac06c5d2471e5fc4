"""Tokenizers of the fetched models: text of all kinds comes back as it was."""

import unittest

from tools.models import fetch, gguf_reader, tokenizer

TEXT = ("It's 2024, isn't it?  Zürich — naïve café; 東京 и Москва 😀\n\n\n"
        "\tfor (int i = 0; i < 10; ++i) { x[i] += 3.14159e-2; }\r\n  trailing  ")


def vocabulary(**changes):
    base = dict(model="llama", pre="default", scores=[0.0] * 9, types=[2, 3] + [1] * 7,
                tokens=["<unk>", "<bos>", "▁", "a", "b", "ab", "▁ab", "aa", "▁a"],
                merges=[], bos=1, eos=1, add_bos=True, add_space_prefix=False, chat_template="")
    return gguf_reader.Vocabulary(**{**base, **changes})


class SentencePieceTest(unittest.TestCase):
    def test_scores_decide_which_pair_merges_first(self):
        scores = [0.0, 0.0, -9.0, -9.0, -9.0, -1.0, -2.0, -3.0, -4.0]
        backend = tokenizer.build(vocabulary(scores=scores))
        encode = lambda text: backend.encode(text, add_special_tokens=False).tokens
        self.assertEqual(encode("aab ab"), ["a", "ab", "▁ab"])
        scores[5], scores[7] = -3.0, -1.0  # now "aa" goes before "ab"
        backend = tokenizer.build(vocabulary(scores=scores))
        self.assertEqual(encode("aab"), ["aa", "b"])

    def test_an_unknown_kind_is_refused_by_name(self):
        with self.assertRaisesRegex(ValueError, "'bert' is not supported"):
            tokenizer.build(vocabulary(model="bert"))
        with self.assertRaisesRegex(ValueError, "pre-tokeniser 'odd'"):
            tokenizer.build(vocabulary(model="gpt2", pre="odd"))


class FetchedModelsTest(unittest.TestCase):
    def test_text_comes_back(self):
        for name in ("smollm2-135m", "qwen2.5-coder-0.5b", "gemma-3-270m"):
            if not fetch.model_path(name).exists():
                print(f"SKIPPED: {name} is not fetched")
                continue
            tok = tokenizer.Tokenizer.from_gguf(fetch.model_path(name))
            ids = tok.encode(TEXT)
            self.assertEqual(tok.decode(ids), TEXT, name)
            self.assertLess(len(ids), len(TEXT.encode()), name)
            self.assertEqual(ids[0] == tok.vocabulary.bos, tok.vocabulary.add_bos, name)


if __name__ == "__main__":
    unittest.main()
