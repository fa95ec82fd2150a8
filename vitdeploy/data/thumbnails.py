"""Small pictures of single images, as a model sees them: cut and resized as its input contract says."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image

from vitdeploy.data.dataset import Dataset
from vitdeploy.errors import InputError
from vitdeploy.spec import InputContract

SIDE = 160
"""Longest side, in pixels; smaller images stay as they are."""
SMALL = 64
"""Side below which a picture is kept exactly: it costs less than its JPEG's tables."""


class Thumbnail(NamedTuple):
    """A picture of an image of the data.

    Attributes:
        kind: Of the file: ``png`` or ``jpeg``.
        content: The file.
        side: The longer one, in pixels.
    """

    kind: str
    content: bytes
    side: int

    @property
    def is_small(self) -> bool:
        """Whether it is to be enlarged by its pixels, not blurred."""
        return self.side < SMALL


def draw_thumbnails(data: Dataset, names: Iterable[str], contract: InputContract) -> dict[str, Thumbnail]:
    """Pictures of the images that the data have under these names.

    Args:
        data: Where they lie.
        names: Of images; others than the data's are left out, and so are arrays that are no pictures, and damaged files.
        contract: What the model sees of them.

    Returns:
        Name to picture.
    """
    places = {name: place for place, name in enumerate(data.listing.names)}
    pictures = {}
    for name in names:
        if name not in places:
            continue
        try:
            pixels = data[places[name]].read(contract)
        except InputError:  # changed since it was measured
            continue
        if pixels.dtype == np.uint8 and pixels.shape[-1] in (1, 3):
            image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
            image.thumbnail((SIDE, SIDE))
            stream = BytesIO()
            kind = "png" if max(image.size) < SMALL else "jpeg"
            image.save(stream, kind, optimize=True)
            pictures[name] = Thumbnail(kind, stream.getvalue(), max(image.size))
    return pictures
