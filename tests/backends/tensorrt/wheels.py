"""NVIDIA's wheels from the package index, fetched once and unpacked outside the repository; never installed."""

import functools
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vitdeploy-tests" / "wheels"


@functools.cache
def unpacked(requirement: str) -> Path:
    """The folder with a wheel's contents; the test is skipped, with the reason, where it can't be had."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    target = FOLDER / f"{requirement.replace('==', '-')}-{tag}"
    if target.is_dir():
        return target
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", folder, requirement]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            lines = [line for line in (done.stderr + done.stdout).splitlines() if "ERROR" in line or "error" in line]
            pytest.skip(f"pip can't download {requirement}: {lines[0] if lines else 'no reason given'}")
        parts = Path(folder) / "parts"
        with zipfile.ZipFile(wheels[0]) as archive:
            archive.extractall(parts)
        try:
            parts.rename(target)  # at once: another worker may have been faster
        except OSError:
            assert target.is_dir()
    return target


def compiler() -> str:
    """The C compiler; the test is skipped where there is none."""
    program = shutil.which("cc") or shutil.which("gcc")
    if program is None:
        pytest.skip("no C compiler (cc) to make stand-ins for NVIDIA's libraries with")
    return program
