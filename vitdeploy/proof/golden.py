"""The golden batch of an artifact: a few images and what the file puts out for them where it was made.

An engine that is built on a device must be compared with something, and a device may have nothing else that runs the file. Nor
can the original be run everywhere: not without torch, nor where it is other people's code. What it gave travels from artifact to
artifact. The images are generated, so nobody's photos may be among them.
"""

from __future__ import annotations

import zipfile
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitdeploy import files
from vitdeploy.artifact import Artifact
from vitdeploy.backends.base import OpenConfig, Runner, run_main
from vitdeploy.backends.child import open_in_child
from vitdeploy.backends.table import PROVER, TABLE, list_engines
from vitdeploy.data import images, synthetic
from vitdeploy.errors import InputError, MachineError, UsageError
from vitdeploy.recipe import GOLDEN_IMAGES

FILE = "golden.npz"
IMAGES = GOLDEN_IMAGES
_LARGEST = 256 << 20
_PART = 32


class Golden(NamedTuple):
    """A golden batch.

    Attributes:
        pixels: uint8 [n, height, width, channels].
        output: float32 [n, K], the model's main output.
        engine: What computed it.
        original: float32 [n, K], what the original gave for the same images; None where it was not there.
        author: What computed that: ``pytorch``; an engine where PyTorch did not, of the FP32 file.
    """

    pixels: NDArray[np.uint8]
    output: NDArray[np.float32]
    engine: str
    original: NDArray[np.float32] | None = None
    author: str = ""

    def write(self, folder: Path) -> None:
        """Write it to ``golden.npz``; the same bytes for the same batch."""
        arrays = {"pixels": self.pixels, "output": self.output, "engine": np.array(self.engine)}
        if self.original is not None:
            arrays |= {"original": self.original, "author": np.array(self.author)}
        np.savez(folder / FILE, **arrays)  # type: ignore[arg-type]  # numpy's own keyword is no array

    def settle(self, artifact: Artifact) -> Golden:
        """What an FP32 file gave is the original of all that becomes of it, where nothing nearer to the original was recorded."""
        if self.original is not None or not artifact.is_float:
            return self
        return self._replace(original=self.output, author=self.engine)

    def take(self, count: int) -> Golden:
        """The first images."""
        original = None if self.original is None else self.original[:count]
        return self._replace(pixels=self.pixels[:count], output=self.output[:count], original=original)


def make(artifact: Artifact, config: OpenConfig | None = None) -> Golden:
    """Run an ONNX artifact on generated images.

    Raises:
        MachineError: VD4001, no engine that runs ONNX files is installed; VD4004, VD4007, it failed.
    """
    with closing(open_first(artifact, config)) as runner:
        return of(runner, artifact).settle(artifact)


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


def of(runner: Runner, artifact: Artifact, source: Golden | None = None) -> Golden:
    """Run an opened artifact on generated images.

    Args:
        runner: The artifact, opened.
        artifact: What is run.
        source: The batch of what the artifact was made of, whose images and original outputs are kept; None for neither.

    Raises:
        MachineError: VD4004, VD4007, the engine failed.
    """
    pixels = synthetic.pixels(IMAGES, artifact.spec.input) if source is None else source.pixels
    made = Golden(pixels, run_pixels(runner, artifact, pixels), str(runner.settings["backend"]))
    return made if source is None else made._replace(original=source.original, author=source.author)


def run_pixels(runner: Runner, artifact: Artifact, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The main output, float32 [n, K], of any number of prepared images.

    Args:
        runner: The artifact, opened.
        artifact: What is run.
        pixels: uint8 [n, height, width, channels].

    Raises:
        MachineError: VD4004, VD4007, the engine failed.
    """
    parts = (pixels[start : start + _PART] for start in range(0, len(pixels), _PART))
    return np.concatenate([run_main(runner, images.to_tensor(part, artifact.spec.input), artifact.spec) for part in parts])


def require_room(count: int, artifact: Artifact) -> None:
    """Refuse more images than a golden batch may have.

    Raises:
        UsageError: VD2011.
    """
    contract = artifact.spec.input
    most = (_LARGEST >> 1) // (contract.height * contract.width * contract.channels)
    if count > max(most, IMAGES):
        message = f"{count:,} images of {contract.height} x {contract.width} are too many for a golden batch"
        raise UsageError("VD2011", message, fix=f"use --golden {most:,} or fewer")


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
        with files.open_regular(path) as stream, np.load(stream, allow_pickle=False) as arrays:
            golden = Golden(arrays["pixels"], arrays["output"], str(arrays["engine"]))
            if "original" in arrays:
                golden = golden._replace(original=arrays["original"], author=str(arrays["author"]))
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as exc:
        raise InputError("VD3010", f"is damaged: {exc}", file=path, fix="make the artifact again") from exc
    contract = artifact.spec.input
    shape = (contract.height, contract.width, contract.channels)
    if golden.pixels.shape[1:] != shape or len(golden.output) != len(golden.pixels) or not len(golden.pixels):
        message = f"holds images {list(golden.pixels.shape)}, the model takes {list(shape)}"
        raise InputError("VD3010", message, file=path, fix="make the artifact again")
    if golden.original is not None and golden.original.shape != golden.output.shape:
        message = f"holds outputs {list(golden.output.shape)} and, of the original, {list(golden.original.shape)}"
        raise InputError("VD3010", message, file=path, fix="make the artifact again")
    return golden.settle(artifact)
