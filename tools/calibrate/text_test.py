"""Passages, and the calibration text's converters."""

import json
import os
import tempfile
import unittest

from tools.calibrate import fetch_text, text

ENCODE = lambda s: [ord(c) for c in s]


class CutTest(unittest.TestCase):
    KINDS = {"a": "line of text\n" * 400, "b": "another kind\n" * 300}

    def test_passages_alternate_kinds_do_not_overlap_and_repeat_by_seed(self):
        found = text.cut(self.KINDS, ENCODE, 6, 200, seed=1)
        self.assertEqual([p.kind for p in found], ["a", "b"] * 3)
        self.assertTrue(all(len(p.ids) == 200 for p in found))
        for kind in "ab":
            begins = [p.begin for p in found if p.kind == kind]
            self.assertTrue(all(y - x >= 200 for x, y in zip(begins, begins[1:])), begins)
        again = text.cut(self.KINDS, ENCODE, 6, 200, seed=1)
        self.assertTrue(all(p.begin == q.begin and (p.ids == q.ids).all()
                            for p, q in zip(found, again)))
        other = text.cut(self.KINDS, ENCODE, 6, 200, seed=2)
        self.assertNotEqual([p.begin for p in found], [p.begin for p in other])

    def test_too_little_text_says_how_little(self):
        with self.assertRaisesRegex(text.TextError, "b: 3900 characters are too little for 2 "
                                                    "passages of 3000 tokens"):
            text.cut({"b": self.KINDS["b"]}, ENCODE, 2, 3000, seed=1)

    def test_files_that_are_none_are_named(self):
        with self.assertRaisesRegex(text.TextError, "expected KIND=FILE"):
            text.read_kinds(["wiki.txt"])
        with self.assertRaisesRegex(text.TextError, "no/such"):
            text.read_kinds(["a=/no/such"])
        with self.assertRaisesRegex(text.TextError, "no --text"):
            text.read_kinds([])

    def test_transcripts_become_dialogues(self):
        with tempfile.TemporaryDirectory() as tmp:
            path = os.path.join(tmp, "t.json")
            with open(path, "w", encoding="utf-8") as f:
                json.dump([{"traj": [
                    {"role": "user", "content": "hi"},
                    {"role": "assistant", "content": None,
                     "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]}], f)
            found = text.read_kinds([f"tool={path}"])["tool"]
        self.assertIn("user: hi", found)
        self.assertIn('assistant: {"tool_call": {"name": "f"', found)


class ConverterTest(unittest.TestCase):
    def test_wiki_markup_is_removed(self):
        found = fetch_text.plain_wikitext(
            "{{Infobox|a={{b}}}}'''Bold''' [[Link|shown]] and [[Plain]].<ref>gone</ref>\n"
            "== Head ==\n{| table |}\n[[File:x.png|thumb|[[inner]]]]text &amp; more")
        self.assertEqual(found, "Bold shown and Plain.\n = = Head = = \ntext & more")

    def test_spacing_is_that_of_word_level_corpora(self):
        self.assertEqual(fetch_text.spaced("A self-made man, 1,200 of 3.5 (it's)."),
                         " A self @-@ made man , 1 @,@ 200 of 3 @.@ 5 ( it 's ) .")

    def test_r_character_vectors_are_found(self):
        def charsxp(s):
            return b"\x00\x04\x00\x09" + len(s).to_bytes(4, "big") + s
        lines = [b"first line", b"", b"third"]
        blob = (b"X\n\x00\x00\x00\x02 junk \x00\x00\x00\x10" + (3).to_bytes(4, "big")
                + b"".join(map(charsxp, lines)) + b"tail")
        self.assertEqual(fetch_text.character_vectors(blob), [["first line", "", "third"]])

    def test_a_call_becomes_a_tool_call(self):
        self.assertEqual(fetch_text.as_call("mv(source='a', n=2)"),
                         {"name": "mv", "arguments": {"source": "a", "n": 2}})


if __name__ == "__main__":
    unittest.main()
