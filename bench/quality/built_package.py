"""Puts the Python client on the path from a build: $KVCASK_PB2 names one of its generated
files. Without it the package counts only where it is installed."""

import os
import pathlib
import shutil
import sys
import tempfile


def use():
    """Before the first import of kvcask."""
    generated = os.environ.get("KVCASK_PB2")
    if not generated:
        return
    folder = pathlib.Path(tempfile.mkdtemp(dir=os.environ.get("TEST_TMPDIR")))
    shutil.copytree("client/python/kvcask", folder / "kvcask")  # tests run at the root
    for file in pathlib.Path(generated).parent.glob("*_pb2.py"):
        shutil.copy(file, folder / "kvcask/v1")
    sys.path.insert(0, str(folder))
