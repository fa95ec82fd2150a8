"""Engines in isolated children that stay for thousands of files: who dies of one, or hangs, is replaced."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from tests.fuzz.seeds import SIDE, SPEC
from vitdeploy.artifact import Artifact, Record
from vitdeploy.backends import table
from vitdeploy.backends.base import OpenConfig
from vitdeploy.errors import MachineError, VitdeployError
from vitdeploy.isolate import Child

ENGINES = ("onnxruntime", "openvino")
SECONDS = 20
MEMORY_MIB = 6144
ENDED = ("VD4007", "VD4008")
"""The child died, or was too late."""


def attempt(argument: list[str]) -> str:
    """Called in the child: open a file in a plain backend, and run it on one batch.

    Returns:
        ``ran``, the code of a typed error, or ``escaped: `` and the traceback of any other.
    """
    engine, name = argument
    path = Path(name)
    pixels = np.random.default_rng(0).standard_normal((2, 3, SIDE, SIDE)).astype(np.float32)
    artifact = Artifact(path.parent, Record(entry=path.name, spec=SPEC, made_by="import"))
    try:
        with closing(table.load(engine).open(artifact, OpenConfig(threads=1))) as runner:
            runner.run(pixels)
    except VitdeployError as exc:
        return exc.code
    except Exception:  # noqa: BLE001 (this is what the fuzzer looks for)
        return "escaped: " + traceback.format_exc()
    return "ran"


class Engine:
    """One engine in a child that is started again when it ended."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._child: Child | None = None

    def attempt(self, path: Path) -> str:
        """As the function of this name, or ``VD4007: <what became of the child>``."""
        if self._child is None:
            self._child = Child(memory_mib=MEMORY_MIB, what=self.name)
        try:
            return self._child.ask(f"{__name__}:attempt", [self.name, str(path)], seconds=SECONDS)[0]
        except MachineError as exc:
            if exc.code in ENDED:
                self.close()
            return f"{exc.code}: {exc.message}"

    def close(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None


@contextmanager
def engines() -> Iterator[tuple[Engine, ...]]:
    """Both, for as long as the block lasts."""
    made = tuple(Engine(name) for name in ENGINES)
    try:
        yield made
    finally:
        for engine in made:
            engine.close()
