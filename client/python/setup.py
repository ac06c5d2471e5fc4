"""Generates kvcask/v1/*_pb2.py from proto/ with protoc (protobuf-compiler, or the one in
grpcio-tools), then builds as usual."""

import pathlib
import shutil
import subprocess
import sys

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = pathlib.Path(__file__).resolve().parent
PROTO = HERE.parent.parent / "proto"


class BuildPy(build_py):
    def run(self):
        files = sorted(PROTO.glob("kvcask/v1/*.proto"))
        if not files:
            sys.exit(f"no .proto files under {PROTO}: build the wheel inside the repository")
        protoc = shutil.which("protoc")
        command = [protoc] if protoc else [sys.executable, "-m", "grpc_tools.protoc"]
        try:
            subprocess.run([*command, f"--proto_path={PROTO}", f"--python_out={HERE}",
                            *map(str, files)], check=True)
        except (OSError, subprocess.CalledProcessError) as e:
            sys.exit(f"cannot run protoc ({e}); install protobuf-compiler or grpcio-tools")
        super().run()


setup(cmdclass={"build_py": BuildPy})
