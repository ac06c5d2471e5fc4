"""The results file: one JSON object a line, appended as they are measured.

A line is either a run (the command, commit, machine, versions and seed of one invocation)
or a score (one passage under one codec, variant and protocol, with the run's number). A
run that was stopped goes on where it was: scores that are there are not measured again. A
last line cut short by a stop is dropped.
"""

import dataclasses
import datetime
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys

from bench.quality import scores

_KEY = ("model", "tokens", "seed", "compute", "protocol", "codec", "variant", "kind", "passage")
_GROUP = len(_KEY) - 2


class Results:
    """An open results file. One writer at a time."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.runs, self.rows = [], []
        self._keys = set()
        if self.path.exists():
            self._load()

    def start_run(self, seed, device):
        """Appends a run record; the scores that follow belong to it."""
        self._run = len(self.runs)
        self.runs.append({"run": self._run, "seed": seed, **provenance(device)})
        self._append(self.runs[-1])

    def has(self, **key):
        return tuple(key[k] for k in _KEY) in self._keys

    def add(self, score, **where):
        """score: a PassageScore; where: model, tokens, seed, compute, protocol, codec,
        lossless, variant."""
        row = {**where, **dataclasses.asdict(score), "run_number": self._run}
        row["kl"] = [float(f"{x:.4g}") for x in score.kl]
        row["heads"] = [list(h) for h in score.heads]
        self._remember(row)
        self._append(row)

    def groups(self):
        """(model, tokens, seed, compute, protocol, codec, variant) -> (PassageScores,
        lossless), in the order of first appearance."""
        out = {}
        for row in self.rows:
            key = tuple(row[k] for k in _KEY[:_GROUP])
            fields = {f.name: row[f.name] for f in dataclasses.fields(scores.PassageScore)
                      if f.name in row}
            fields["kl"] = tuple(fields["kl"])
            out.setdefault(key, ([], row["lossless"]))[0].append(scores.PassageScore(**fields))
        return out

    def _load(self):
        whole = 0
        for line in self.path.read_bytes().splitlines(keepends=True):
            try:
                if not line.endswith(b"\n"):
                    raise ValueError
                record = json.loads(line)
            except ValueError:
                if whole + len(line) != self.path.stat().st_size:
                    raise ValueError(f"{self.path}: byte {whole}: not a JSON line") from None
                os.truncate(self.path, whole)
                break
            whole += len(line)
            if "run" in record:
                self.runs.append(record)
            else:
                self._remember(record)

    def _remember(self, row):
        row.setdefault("compute", "float32")  # files written before there was a choice
        self.rows.append(row)
        self._keys.add(tuple(row[k] for k in _KEY))

    def _append(self, record):
        with self.path.open("a") as f:
            f.write(json.dumps(record) + "\n")


def provenance(device):
    """Command, commit, machine and versions, as strings."""
    import torch
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            machine = f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
            break
    if str(device) != "cpu":
        machine += f", {torch.cuda.get_device_name(device)}"
    return {"command": shlex.join(["kvcask-eval", *sys.argv[1:]]), "commit": _commit(),
            "machine": machine, "torch": torch.__version__,
            "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}


def _commit():
    """Of the working tree this file lies in, with "+changes" where it is not clean; or
    $KVCASK_COMMIT, where there is no git."""
    here = pathlib.Path(__file__).parent
    git = lambda *args: subprocess.run(["git", "-C", str(here), *args], capture_output=True,
                                       text=True, check=True).stdout.strip()
    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git(
            "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("KVCASK_COMMIT", "unknown")


def _lines(path):
    try:
        return pathlib.Path(path).read_text().splitlines()
    except OSError:
        return []
