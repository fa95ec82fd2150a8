"""The golden batch of an artifact: a few images and what the file puts out for them where it was made.

An engine that is built on a device must be compared with something, and a device may have nothing else that runs the file.
The images are generated: they come with the artifact, so nobody's photos may be among them.
"""

from __future__ import annotations

import zipfile
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitdeploy.artifact import Artifact
from vitdeploy.backends.base import OpenConfig, Runner, run_main
from vitdeploy.backends.child import open_in_child
from vitdeploy.backends.table import PROVER, TABLE, list_engines
from vitdeploy.data import images, synthetic
from vitdeploy.errors import InputError, MachineError

FILE = "golden.npz"
IMAGES = 4
_LARGEST = 256 << 20


class Golden(NamedTuple):
    """A golden batch.

    Attributes:
        pixels: uint8 [n, height, width, channels].
        output: float32 [n, K], the model's main output.
        engine: What computed it.
    """

    pixels: NDArray[np.uint8]
    output: NDArray[np.float32]
    engine: str

    def write(self, folder: Path) -> None:
        """Write it to ``golden.npz``; the same bytes for the same batch."""
        np.savez(folder / FILE, pixels=self.pixels, output=self.output, engine=np.array(self.engine))


def make(artifact: Artifact, config: OpenConfig | None = None) -> Golden:
    """Run an ONNX artifact on generated images.

    Raises:
        MachineError: VD4001, no engine that runs ONNX files is installed; VD4004, VD4007, it failed.
    """
    with closing(open_first(artifact, config)) as runner:
        return of(runner, artifact)


def open_first(artifact: Artifact, config: OpenConfig | None = None) -> Runner:
    """Open an ONNX artifact in the first engine that is installed.

    Raises:
        MachineError: VD4001, no engine that runs ONNX files is installed; VD4004, VD4007, it failed.
    """
    name = next(iter(list_engines()), None)
    if name is None:
        fix = f"{TABLE[PROVER].fix}, or give an artifact that vitdeploy has exported or quantized"
        raise MachineError("VD4001", "nothing here can run the model", file=artifact.model, fix=fix)
    return open_in_child(name, artifact, config or OpenConfig())


def of(runner: Runner, artifact: Artifact) -> Golden:
    """Run an opened artifact on generated images.

    Raises:
        MachineError: VD4004, VD4007, the engine failed.
    """
    pixels = synthetic.pixels(IMAGES, artifact.spec.input)
    output = run_main(runner, images.to_tensor(pixels, artifact.spec.input), artifact.spec)
    return Golden(pixels, output, str(runner.settings["backend"]))


def read(artifact: Artifact) -> Golden | None:
    """The golden batch that came with an artifact; None when it has none.

    Raises:
        InputError: VD3010, it is damaged, or does not fit the model.
    """
    path = artifact.folder / FILE
    if FILE not in artifact.record.files:
        return None
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError("too large")
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            golden = Golden(arrays["pixels"], arrays["output"], str(arrays["engine"]))
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as exc:
        raise InputError("VD3010", f"is damaged: {exc}", file=path, fix="make the artifact again") from exc
    contract = artifact.spec.input
    shape = (contract.height, contract.width, contract.channels)
    if golden.pixels.shape[1:] != shape or len(golden.output) != len(golden.pixels) or not len(golden.pixels):
        message = f"holds images {list(golden.pixels.shape)}, the model takes {list(shape)}"
        raise InputError("VD3010", message, file=path, fix="make the artifact again")
    return golden
