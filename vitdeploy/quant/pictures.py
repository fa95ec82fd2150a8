"""Calibration images: which of them set ranges, in two halves, and which are held back to judge the result."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitdeploy.artifact import Artifact
from vitdeploy.data import Counts, Dataset, LoadConfig, images, open_dataset, synthetic
from vitdeploy.data.dataset import explain_turned
from vitdeploy.recipe import QuantizeConfig

BATCH = 8
RANDOM = 64
"""Generated images of ``--data random``."""
_FEWEST = 16
Part = Literal["first", "second", "ranges", "held"]


@dataclass(frozen=True)
class Pictures:
    """The calibration images, split into those that set ranges (in two halves) and those held back.

    Attributes:
        data: The data set; None for generated images.
        artifact: Whose input contract counts.
        used: Images in all.
        held: How many of them are held back.
        config: Seed, tolerance.
        seen: What the last pass has counted.
    """

    data: Dataset | None
    artifact: Artifact
    used: int
    held: int
    config: QuantizeConfig
    seen: Counts = field(default_factory=lambda: Counts(listed=0))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of the images that were read."""
        ignored = self.seen.turned and self.artifact.spec.input.exif == "ignore"
        return (explain_turned(self.seen.turned),) if ignored else ()

    @property
    def name(self) -> str:
        """Of the data set; ``random`` for generated images."""
        return "random" if self.data is None else self.data.name

    @property
    def whole(self) -> bool:
        """Whether no image of the data set is left out."""
        return self.data is not None and self.used == len(self.data)

    @property
    def digest(self) -> str:
        """Of the data set; "" for generated images."""
        return "" if self.data is None else self.data.digest

    @property
    def seen_images(self) -> str:
        """Every image that is looked at, those held back too, as `Calibration.seen` has them; "" for generated ones."""
        if self.data is None:
            return ""
        identities = {self.data.listing.identify(index) for index in self.data.chosen(self._load)}
        return base64.b64encode(b"".join(sorted(identities))).decode()

    @property
    def _load(self) -> LoadConfig:
        config = self.config
        return LoadConfig(batch_size=BATCH, limit=self.used, seed=config.seed, max_bad=config.max_bad)

    def part(self, part: Part) -> Iterator[tuple[NDArray[Any], tuple[str, ...]]]:
        """Images of one part in batches, as the model takes them, with their names; the same in every pass.

        Every batch but the last has `BATCH` images.
        """
        counter, kept, known = 0, list[NDArray[Any]](), list[str]()
        for pixels, names in self._all():
            for image, name in zip(pixels, names, strict=True):
                if self._belongs(counter, part):
                    kept.append(image)
                    known.append(name)
                counter += 1
                if len(kept) == BATCH:
                    yield images.to_tensor(np.stack(kept), self.artifact.spec.input), tuple(known)
                    kept, known = [], []
        if kept:
            yield images.to_tensor(np.stack(kept), self.artifact.spec.input), tuple(known)

    def tensors(self, part: Part) -> Iterator[NDArray[Any]]:
        """As `part`, without names."""
        return (tensor for tensor, _ in self.part(part))

    def _belongs(self, number: int, part: Part) -> bool:
        before = number * self.held // self.used
        held = (number + 1) * self.held // self.used > before
        half = (number - before) % 2
        return {"held": held, "ranges": not held, "first": not held and half == 0, "second": not held and half == 1}[part]

    def _all(self) -> Iterator[tuple[NDArray[Any], tuple[str, ...]]]:
        contract = self.artifact.spec.input
        if self.data is None:
            for start in range(0, self.used, BATCH):
                count = min(BATCH, self.used - start)
                yield (
                    synthetic.pixels(count, contract, seed=self.config.seed + start),
                    tuple(f"random {start + i}" for i in range(count)),
                )
            return
        with self.data.batches(contract, self._load) as batches:
            for batch in batches:
                yield batch.pixels, batch.names
            self.seen.turned = batches.counts.turned


def open_pictures(artifact: Artifact, config: QuantizeConfig, given: Path | None = None) -> Pictures | None:
    """The images that were named or given, or None when statistics, or nothing, are to serve.

    A quarter of the images is held back, or as many as the ranges do not need; none of fewer than 16, and no generated ones.
    They are held back whether or not anything will be measured, so that the file is the same.

    Raises:
        InputError: VD3001, VD3101, VD3105: the images can't be read.
    """
    if config.calibration is None:
        return None
    data = None if config.calibration == "random" else open_dataset(given or Path(config.calibration), split=config.split)
    there = RANDOM if data is None else len(data)
    held = 0
    if data is not None and there >= _FEWEST:
        held = min(config.verify_images, max(there - config.limit, there // 4))
    used = min(there, config.limit + held)
    return Pictures(data, artifact, used, held, config)
