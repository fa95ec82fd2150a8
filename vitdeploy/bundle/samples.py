"""The sample images of a bundle: files as a box will meet them, and what became of them where the bundle was packed.

The golden batch of an artifact begins at prepared pixels. Samples begin at files: another decoder, a resize that rounds otherwise
or a contract that was read wrongly show here. They are generated, so nobody's photos may be among them.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitdeploy.backends.base import Runner, run_main
from vitdeploy.data import gather, images, synthetic
from vitdeploy.spec import InputContract, ModelSpec

LARGEST = 256 << 20
"""Bytes of the outputs that a bundle may hold."""
_ORIENTATION, _QUARTER_TURN = 0x0112, 6
_TILE = 5
"""Pixels a side."""
_SHAPES = {"plain": (1.0, 1.0), "wide": (1.2, 1.9), "tall": (1.7, 1.1), "small": (0.6, 0.7), "edges": (2.3, 2.6)}
"""Kind of a sample to its height and width, as shares of the input's."""


class Expected(NamedTuple):
    """What belongs to the samples, in their order.

    Attributes:
        pixels: uint8 or float32 [n, height, width, channels], prepared.
        outputs: Folder of a model to its main output, float32 [n, K].
        original: The same of the original; None where it was not there.
    """

    pixels: NDArray[Any]
    outputs: Mapping[str, NDArray[np.float32]]
    original: NDArray[np.float32] | None = None

    def write(self, path: Path) -> None:
        """Write it as ``.npz``; the same bytes for the same arrays."""
        arrays = {"pixels": self.pixels, **{f"output:{name}": output for name, output in self.outputs.items()}}
        if self.original is not None:
            arrays["original"] = self.original
        np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's own keyword is no array


def read_expected(content: bytes) -> Expected:
    """What `Expected.write` wrote.

    Raises:
        ValueError: It is damaged.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            outputs = {name.partition(":")[2]: arrays[name] for name in arrays.files if name.startswith("output:")}
            original = arrays["original"] if "original" in arrays.files else None
            return Expected(arrays["pixels"], outputs, original)
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as exc:
        raise ValueError(str(exc)) from exc


def write_samples(contract: InputContract, folder: Path) -> tuple[str, ...]:
    """Draw the samples for a contract into a folder.

    Beside images of several sizes there is one in grey, one with transparency and one that is turned by its EXIF tag; an input
    of other channels takes arrays, and one that is never resized takes its own size only.

    Returns:
        Their names, sorted.
    """
    if contract.channels not in (1, 3):
        for number, pixels in enumerate(synthetic.pixels(4, contract)):
            np.save(folder / f"array-{number}.npy", pixels)
    else:
        for number, (kind, picture) in enumerate(_draw(contract)):
            exif = Image.Exif()
            if kind == "turned":
                exif[_ORIENTATION] = _QUARTER_TURN
            picture.save(folder / f"{number}-{kind}.png", exif=exif)
    return tuple(sorted(path.name for path in folder.iterdir()))


def prepare_samples(paths: Sequence[Path], contract: InputContract) -> NDArray[Any]:
    """Samples as `predict` prepares any image.

    Returns:
        uint8 or float32 [n, height, width, channels].

    Raises:
        InputError: One can't be read.
    """
    jobs = [job for number, path in enumerate(paths) for job in gather.open_part(path, number).list_jobs()]
    return np.stack([read(contract).pixels for _, read in jobs])


def run_samples(runner: Runner, pixels: NDArray[Any], spec: ModelSpec) -> NDArray[np.float32]:
    """The main output for prepared samples, one at a time as `predict` runs them: float32 [n, K].

    Raises:
        MachineError: VD4004, VD4007, the engine failed.
    """
    return np.concatenate([run_main(runner, images.to_tensor(each[None], spec.input), spec)[:1] for each in pixels])


def _draw(contract: InputContract) -> list[tuple[str, Image.Image]]:
    fixed = contract.resize == "none"
    shapes = {kind: (1.0, 1.0) if fixed else shape for kind, shape in _SHAPES.items()}
    if not fixed or contract.height == contract.width:
        shapes["turned"] = shapes["wide"]
    drawn = [
        (kind, _photograph(contract, shape, seed, edges=kind == "edges")) for seed, (kind, shape) in enumerate(shapes.items())
    ]
    grey, seen = (_photograph(contract, shapes["wide"], len(shapes) + more) for more in (0, 1))
    veil = np.linspace(0, 255, seen.width * seen.height).reshape(seen.height, seen.width).astype(np.uint8)
    seen.putalpha(Image.fromarray(veil))
    return [*drawn, ("grey", grey.convert("L")), ("veiled", seen)]


def _photograph(contract: InputContract, shape: tuple[float, float], seed: int, *, edges: bool = False) -> Image.Image:
    """A drawn image of a shape; with edges it is inverted in every other tile, which no two resampling filters soften alike."""
    height, width = (max(1, round(side * share)) for side, share in zip((contract.height, contract.width), shape, strict=True))
    size = msgspec.structs.replace(
        contract, height=height, width=width, channels=3, mean=(0.0,) * 3, std=(1.0,) * 3, resize_to=None
    )
    pixels = synthetic.pixels(1, size, seed=seed)[0]
    if edges:
        rows, columns = np.arange(height)[:, None] // _TILE, np.arange(width)[None, :] // _TILE
        pixels[(rows + columns) % 2 == 1] ^= 255
    return Image.fromarray(pixels, "RGB")
