"""Starts a kvcaskd for the length of a measurement."""

import contextlib
import pathlib
import subprocess
import tempfile
import threading

from bench.quality.roundtrip import RoundtripError

_START_S = 60


@contextlib.contextmanager
def running(binary, arguments=()):
    """Runs `binary` on a unix socket of its own; yields its address; ends it afterwards.

    RoundtripError with the end of its log if it ends, or a minute passes, before it says
    where it listens.
    """
    # under /tmp: a unix socket's path is short
    with tempfile.TemporaryDirectory(prefix="kvcask-eval-", dir="/tmp") as tmp:
        log = pathlib.Path(tmp) / "log"
        with log.open("wb") as out:
            try:
                process = subprocess.Popen(
                    [binary, "--listen", f"unix:{tmp}/s", "--metrics", "off", *arguments],
                    stdout=subprocess.PIPE, stderr=out, text=True)
            except OSError as e:
                raise RoundtripError(f"{binary}: {e}") from e
            try:
                yield _address(process, binary, log)
            finally:
                process.terminate()
                try:
                    process.wait(timeout=_START_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                process.stdout.close()


def _address(process, binary, log):
    late = threading.Timer(_START_S, process.kill)
    late.start()
    try:
        for line in process.stdout:
            if line.startswith("listening "):
                return line.split(None, 1)[1].strip()
    finally:
        late.cancel()
    process.wait()
    raise RoundtripError(f"{binary} did not start (exit code {process.returncode}): "
                         + log.read_text(errors="replace")[-2000:].strip())
