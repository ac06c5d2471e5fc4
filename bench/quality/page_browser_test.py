"""The HTML report in a headless chromium: nothing is cut off, nothing overlaps the figure.

Says SKIPPED where there is no chromium (Debian's package chromium)."""

import json
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

from bench.quality import page, report, results, scores

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

# Runs inside the page; the answer is read from the dumped document.
_PROBE = """<script>
const out = {svgs: [], wide: document.documentElement.scrollWidth - innerWidth, tables: 0,
             lost: []};
for (const svg of document.querySelectorAll('svg')) {
  const frame = svg.getBoundingClientRect();
  out.svgs.push([frame.width, frame.height, svg.querySelectorAll('circle').length]);
  for (const part of svg.querySelectorAll('text, circle, polyline')) {
    const box = part.getBoundingClientRect();
    if (box.left < frame.left - 1 || box.right > frame.right + 1 ||
        box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
      out.lost.push(part.outerHTML.slice(0, 120));
  }
}
out.tables = document.querySelectorAll('table').length;
out.first = document.querySelector('svg, table').tagName;
const answer = document.createElement('pre');
answer.id = 'answer';
answer.textContent = JSON.stringify(out);
document.body.append(answer);
</script>"""


def made_up_report(folder):
    """Two models, every sort of table, long codec names."""
    found, labels = [], []
    codecs = ["identity", "int8"] + [f"fklt-{q}@qwen2.5-coder-1.5b-layer-{p}" for p in (4, 8)
                                     for q in ("near_lossless", "balanced", "compact")]
    for model in ("SmolLM2-135M-Instruct", "Qwen2.5-Coder-1.5B-Instruct"):
        for step, variants in (("prefix", ["kv"]), ("faults", ["kv"]),
                               ("layers", ["kv", *(f"layer:{i}" for i in range(28))])):
            result = results.Results(folder / f"{model}-{step}.jsonl")
            result.start_run(1, "cpu")
            for i, codec in enumerate(codecs):
                for variant in variants:
                    for passage in range(3):
                        kl = 0.0 if codec == "identity" else 1e-4 * 3 ** i * (1 + passage)
                        result.add(scores.PassageScore(
                            "wiki", passage, kl / 2, 2.0, (kl, 2 * kl), 1 - kl, 1000 * (i + 1),
                            1000), model=model, tokens=2048, seed=1, compute="float32",
                            protocol="prefix", codec=codec + "+scaled-value" * (
                                step == "faults"), variant=variant, lossless=i == 0)
            found.append(result)
            labels.append(step)
    return report.build(found, labels)


@unittest.skipUnless(CHROMIUM, "SKIPPED: there is no chromium")
class PageInABrowserTest(unittest.TestCase):
    def look(self, width):
        with tempfile.TemporaryDirectory() as tmp:
            folder = pathlib.Path(tmp)
            file = folder / "report.html"
            text = page.page(made_up_report(folder))
            file.write_text(text.replace("</html>", _PROBE + "</html>"))
            done = subprocess.run(
                [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp}/u",
                 f"--window-size={width},900", "--dump-dom", f"file://{file}"],
                capture_output=True, text=True, timeout=240, check=True)
        found = re.search(r'<pre id="answer">(.*?)</pre>', done.stdout, re.S)
        self.assertIsNotNone(found, done.stderr[-2000:])
        return json.loads(found.group(1).replace("&lt;", "<").replace("&gt;", ">")
                          .replace("&quot;", '"').replace("&amp;", "&"))

    def test_pictures_come_first_and_nothing_is_cut_off(self):
        seen = self.look(1280)
        self.assertEqual(seen["first"], "svg")
        self.assertEqual(len(seen["svgs"]), 4)  # a rate and a layer picture a model
        for width, height, circles in seen["svgs"][:2]:
            self.assertGreater(min(width, height), 300)
            self.assertEqual(circles, 2 * 7)  # a point and its mark in the legend; no identity
        self.assertEqual(seen["lost"], [])
        self.assertLessEqual(seen["wide"], 0)
        self.assertGreaterEqual(seen["tables"], 6)

    def test_a_narrow_window_scrolls_tables_not_the_page(self):
        self.assertLessEqual(self.look(500)["wide"], 0)


if __name__ == "__main__":
    unittest.main()
