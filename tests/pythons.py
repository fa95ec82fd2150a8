"""Other Pythons of this machine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def find_python(version: str) -> str | None:
    """A Python of this version that runs: on the path, or one of pyenv's."""
    for place in (shutil.which(f"python{version}"), *sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))):
        if place and subprocess.run([place, "-c", ""], capture_output=True).returncode == 0:
            return str(place)
    return None
