"""How an image file becomes a model's input: the same rule in training, calibration and on the device. Needs no torch."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from vitdeploy.errors import UsageError
from vitdeploy.words import Alpha, Arrays, Exif, Filter, InputTensor

SMALLEST_WITH_MARGIN = 224
"""Side of the input, in pixels, below which an image is taken whole and no margin is cut off."""


class InputContract(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an image file becomes the model's input: the same rule in training, calibration and on the device.

    Order: decode, orient (`exif`), convert to RGB or grey, resize, centre crop, scale by 1/255, normalise.

    Attributes:
        height: Rows of the model's input, in pixels.
        width: Columns of the model's input, in pixels.
        channels: 1 (grey), 3 (RGB), or another number for inputs that are not image files.
        resize: ``shortest``: the shorter side becomes `resize_to`, the aspect is kept; ``stretch``: exactly
            height x width, or that enlarged to `resize_to`, the aspect is lost; ``none``: images must already have the
            right size.
        resize_to: In pixels, before the crop: the shorter side after ``shortest``, the longer side after ``stretch``; None
            means max(height, width), so that the crop fits.
        interpolation: Resampling filter; bicubic is a = -0.5 with antialias (Pillow) and a = -0.75 without (torch).
        antialias: Widen the filter when shrinking, as Pillow does.
        crop_rounding: Where the centre is when the margin is odd: ``round`` (torchvision, timm) or ``floor``
            (transformers).
        exif: Whether the orientation tag of a photo is applied.
        alpha: What becomes of transparency: ``drop`` shows the colours behind it (``convert("RGB")``, as timm and torchvision),
            ``white`` lays the image on white (transformers' ``do_convert_rgb``).
        mean: Per channel, on the scale [0, 1].
        std: Per channel, on the scale [0, 1].
        arrays: What data that are arrays of floats hold: ``raw`` values, on the scale of mean and std, or ``normalised`` ones.
        tensor: What the model file takes: normalised ``float32-nchw``, or raw ``uint8-nchw`` / ``uint8-nhwc`` when the
            normalisation lies inside the model.
    """

    height: int = 224
    width: int = 224
    channels: int = 3
    resize: Literal["shortest", "stretch", "none"] = "shortest"
    resize_to: int | None = None
    interpolation: Filter = "bicubic"
    antialias: bool = True
    crop_rounding: Literal["round", "floor"] = "round"
    exif: Exif = "ignore"
    alpha: Alpha = "white"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    arrays: Arrays = "raw"
    tensor: InputTensor = "float32-nchw"

    def __post_init__(self) -> None:
        """Refuse a contract that no image can meet."""
        if min(self.height, self.width, self.channels) < 1:
            raise UsageError("VD2003", f"input is {self.channels} x {self.height} x {self.width}; all must be positive")
        if not len(self.mean) == len(self.std) == self.channels:
            message = f"{self.channels} channels, but {len(self.mean)} means and {len(self.std)} standard deviations"
            raise UsageError("VD2003", message)
        if not all(map(math.isfinite, self.mean)):
            raise UsageError("VD2003", f"mean is {self.mean}; all must be finite")
        if not all(s > 0 and math.isfinite(s) for s in self.std):
            raise UsageError("VD2003", f"std is {self.std}; all must be positive")
        if self.resize != "none" and self.shorter < max(self.height, self.width):
            message = f"resize_to is {self.shorter}, smaller than the crop {self.height} x {self.width}"
            raise UsageError("VD2003", message, fix="raise resize_to, or leave it out")

    @property
    def shorter(self) -> int:
        """`resize_to`, or what it means when it is None, in pixels."""
        return max(self.height, self.width) if self.resize_to is None else self.resize_to

    def change_size(self, height: int, width: int) -> InputContract:
        """The same contract for another input size; the crop share of the resized image is kept, but small images are whole.

        Source: the libraries publish evaluations with a margin around the crop from `SMALLEST_WITH_MARGIN` pixels on; for the
            images of small data sets facebookresearch/deit, datasets.py, leaves it out.
        """
        if max(height, width) < min(SMALLEST_WITH_MARGIN, max(self.height, self.width)):
            return msgspec.structs.replace(self, height=height, width=width, resize_to=None)
        to = None if self.resize_to is None else round(self.resize_to * max(height, width) / max(self.height, self.width))
        return msgspec.structs.replace(self, height=height, width=width, resize_to=to)
