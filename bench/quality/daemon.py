"""Starts a kvcaskd for the length of a measurement."""

import contextlib
import os
import pathlib
import subprocess
import tempfile

from bench.quality.roundtrip import RoundtripError


@contextlib.contextmanager
def running(binary, arguments=()):
    """Runs `binary` on a unix socket of its own; yields "unix:/path"; ends it afterwards.

    RoundtripError with the end of its log if it ends before it is ready.
    """
    with tempfile.TemporaryDirectory(prefix="kvcask-eval-", dir="/tmp") as tmp:
        address = f"unix:{tmp}/s"
        log = pathlib.Path(tmp) / "log"
        ready_read, ready_write = os.pipe()
        with log.open("wb") as out:
            try:
                process = subprocess.Popen(
                    [binary, "--listen", address, "--metrics", "off",
                     "--ready-fd", str(ready_write), *arguments],
                    stdout=out, stderr=out, pass_fds=[ready_write])
            except OSError as e:
                raise RoundtripError(f"{binary}: {e}") from e
            finally:
                os.close(ready_write)
            try:
                with os.fdopen(ready_read) as ready:
                    if not ready.readline():  # closed: it ended
                        process.wait(timeout=60)
                        raise RoundtripError(f"{binary} did not start: "
                                             + log.read_text(errors="replace")[-2000:])
                yield address
            finally:
                process.terminate()
                try:
                    process.wait(timeout=60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
