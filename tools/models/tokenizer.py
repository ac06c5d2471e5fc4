"""The tokenizer inside a GGUF, rebuilt with the `tokenizers` package.

"gpt2" vocabularies are byte-level BPE with the file's merges; the pre-tokeniser goes by
its name (tokenizer.ggml.pre). "llama" vocabularies are SentencePiece BPE: a GGUF holds
scores instead of merges, and the merges follow from them.
"""

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from tools.models import gguf_reader

_CONTROL, _USER = 3, 4

_GPT2_SPLIT = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
               r"|\s+(?!\S)|\s+")
_QWEN2_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
                r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
# pre -> (split expression, each digit alone)
_PRE_TOKENISERS = {
    "gpt-2": (_GPT2_SPLIT, False), "default": (_GPT2_SPLIT, False),
    "smollm": (_GPT2_SPLIT, True), "qwen2": (_QWEN2_SPLIT, False),
}


class Tokenizer:
    """Text to ids and back. Not thread-safe."""

    def __init__(self, backend, vocabulary):
        self.backend = backend  # the tokenizers.Tokenizer; hf_export saves it
        self.vocabulary = vocabulary

    @classmethod
    def from_gguf(cls, path):
        """ValueError where the vocabulary's kind or pre-tokeniser is unknown."""
        vocabulary = gguf_reader.GgufFile(path).vocabulary()
        return cls(build(vocabulary), vocabulary)

    def encode(self, text, add_bos=None, special=False):
        """Ids of `text`. add_bos: what the file says if None. special: read control
        tokens such as <|im_start|> in the text as themselves."""
        if add_bos is None:
            add_bos = self.vocabulary.add_bos
        if special:
            ids = self.backend.encode(text, add_special_tokens=False).ids
        else:
            ids = self._plain(text)
        return [self.vocabulary.bos] + ids if add_bos else ids

    def decode(self, ids):
        """Text of ids; control tokens are left out."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def _plain(self, text):
        # with encode_special_tokens, the text of a control token is ordinary text
        self.backend.encode_special_tokens = True
        try:
            return self.backend.encode(text, add_special_tokens=False).ids
        finally:
            self.backend.encode_special_tokens = False


def build(vocabulary):
    """A tokenizers.Tokenizer from a gguf_reader.Vocabulary."""
    if vocabulary.model == "gpt2":
        backend = _byte_level(vocabulary)
    elif vocabulary.model == "llama":
        backend = _sentence_piece(vocabulary)
    else:
        raise ValueError(f"tokenizer model {vocabulary.model!r} is not supported "
                         "(gpt2 and llama are)")
    ids = range(len(vocabulary.types))
    backend.add_special_tokens([AddedToken(vocabulary.tokens[i], normalized=False, special=True)
                                for i in ids if vocabulary.types[i] == _CONTROL])
    backend.add_tokens([AddedToken(vocabulary.tokens[i], normalized=False)
                        for i in ids if vocabulary.types[i] == _USER])
    return backend


def _byte_level(vocabulary):
    if vocabulary.pre not in _PRE_TOKENISERS:
        raise ValueError(f"pre-tokeniser {vocabulary.pre!r} is not one of "
                         f"{sorted(_PRE_TOKENISERS)}")
    split, digits = _PRE_TOKENISERS[vocabulary.pre]
    merges = [tuple(m.split(" ", 1)) for m in vocabulary.merges]
    backend = tokenizers.Tokenizer(models.BPE(_ids(vocabulary), merges))
    steps = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    steps += [pre_tokenizers.Split(Regex(split), behavior="isolated"),
              pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if vocabulary.pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentence_piece(vocabulary):
    ids = _ids(vocabulary)
    merges = []
    for piece, rank in ids.items():
        found = [(piece[:i], piece[i:]) for i in range(1, len(piece))
                 if piece[:i] in ids and piece[i:] in ids]
        found.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        merges += [(vocabulary.scores[rank], pair) for pair in found]
    merges.sort(key=lambda m: m[0], reverse=True)  # stable: vocabulary order within a score
    unknown = vocabulary.tokens[vocabulary.types.index(2)] if 2 in vocabulary.types else "<unk>"
    backend = tokenizers.Tokenizer(models.BPE(ids, [m[1] for m in merges], unk_token=unknown,
                                              fuse_unk=True, byte_fallback=True))
    steps = [normalizers.Prepend("▁")] if vocabulary.add_space_prefix else []
    backend.normalizer = normalizers.Sequence(steps + [normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                         decoders.Fuse()])
    return backend


def _ids(vocabulary):
    return {token: i for i, token in enumerate(vocabulary.tokens)}
