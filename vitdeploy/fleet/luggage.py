"""What travels to a box beside the bundle: the agent, and this vitdeploy, both as archives that Python runs as they are."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import vitdeploy
from vitdeploy import files

_PACKAGE = Path(vitdeploy.__file__).parent
_OF_AGENT = (
    *("__init__.py", "errors.py", "files/*.py", "fleet/__init__.py", "fleet/agent/*.py"),
    *("bundle/__init__.py", "bundle/archive.py", "bundle/p256.py", "bundle/signature.py"),
)
"""All that the agent imports: nothing of it needs more than the standard library."""
_START = "import sys\nfrom vitdeploy.fleet.agent.main import run\nsys.exit(run(sys.argv))\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)


@lru_cache(1)
def pack_agent() -> bytes:
    """The agent, for ``python3 agent.pyz``."""
    return _zip(path for pattern in _OF_AGENT for path in _PACKAGE.glob(pattern))


@lru_cache(1)
def pack_runtime() -> bytes:
    """This vitdeploy, for ``PYTHONPATH=vitdeploy.zip``: a box checks a release with what packed it, and may serve with it."""
    return _zip(_PACKAGE.rglob("*.py"))


def _zip(paths: Iterable[Path]) -> bytes:
    """Modules as an archive: the same bytes for the same files."""
    content = io.BytesIO()
    texts = {f"vitdeploy/{path.relative_to(_PACKAGE).as_posix()}": files.read_bytes(path) for path in paths} | {
        "__main__.py": _START.encode()
    }
    with zipfile.ZipFile(content, "w") as archive:
        for name in sorted(texts):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), texts[name], zipfile.ZIP_DEFLATED)
    return content.getvalue()
