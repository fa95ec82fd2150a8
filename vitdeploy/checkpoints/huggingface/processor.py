"""``preprocessor_config.json`` as an input contract: what transformers' image processors do to a picture.

An option that the file leaves out has the default of the processor's class, which the file names; a file without a name
belongs to the family's class. Without any file, the family's class prepares images for the size that the network was saved
for. Those defaults are not always what the weights were trained with, so keep the file with the weights.

An image file is turned as its orientation tag says (``load_image``). Transparency lies on white where the processor converts
to RGB (``do_convert_rgb``, the default of some classes); where it does not, images must be RGB before, which drops it.

The order is resize, crop, rescale, normalise, on 8-bit pixels, as in transformers' Pillow backend. Its torchvision backend
and DINOv3's processor resize in floating point, which differs from this by less than one of 255 steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, TypedDict, TypeGuard

from vitdeploy.checkpoints.huggingface.family import Options
from vitdeploy.errors import InputError, UsageError
from vitdeploy.spec import InputContract

_HALF = [0.5, 0.5, 0.5]
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": {"shortest_edge": 224},
    "crop_size": 224,
    "do_center_crop": True,
    "do_convert_rgb": True,
    "square": False,
}
_SQUARE: dict[str, object] = {
    "image_mean": _HALF,
    "image_std": _HALF,
    "resample": 2,
    "size": {"height": 224, "width": 224},
    "crop_size": 224,
    "do_center_crop": False,
    "square": True,  # what a size of one number means: both sides, or the shorter one
}
PROCESSORS: dict[str, dict[str, object]] = {
    "ViT": _SQUARE,
    "DeiT": {**_SQUARE, "resample": 3, "size": 256, "do_center_crop": True},
    "Beit": {**_SQUARE, "resample": 3},
    "Siglip": {**_SQUARE, "resample": 3, "square": False, "do_convert_rgb": True},
    "DINOv3ViT": {**_SQUARE, **_IMAGENET},
    "CLIP": _CLIP,
    "Bit": _CLIP,
}
"""Defaults of each class (transformers 5.23), by its name without ``ImageProcessor``."""

_SUFFIXES = ("FeatureExtractor", "ImageProcessorFast", "ImageProcessorPil", "ImageProcessor")
_FILTERS = {2: "bilinear", 3: "bicubic"}
_OTHER_FILTERS = {0: "nearest", 1: "lanczos", 4: "box", 5: "hamming"}
_OTHER_STEPS = ("do_pad", "do_flip_channel_order", "do_grayscale", "crop_pct", "do_thumbnail", "do_align_long_axis")
_ALWAYS = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}


class _Geometry(TypedDict, total=False):
    height: int
    width: int
    resize: Literal["shortest", "stretch", "none"]
    resize_to: int


def contract(options: Options) -> InputContract:
    """How an image becomes the model's input.

    Raises:
        UsageError: VD2011, the file names a filter that is neither bilinear nor bicubic.
        InputError: VD3015, another processor, or a step that an input contract does not have.
    """
    file = {key: value for key, value in options.checkpoint.preprocessor.items() if value is not None}
    given = {**_ALWAYS, **PROCESSORS[_kind(file, options)], **file}
    for key in _OTHER_STEPS:
        if given.get(key):
            raise _refuse(key, given, options)
    mean, std = _statistics(given, options)
    made = InputContract(
        **_geometry(given, options),
        channels=options.integer("num_channels"),
        interpolation=_filter(given, options),
        crop_rounding="floor",
        exif="apply",
        alpha="white" if given.get("do_convert_rgb") else "drop",
        mean=mean,
        std=std,
    )
    return made if file else made.change_size(*options.pair("image_size"))


def _refuse(key: str, given: Mapping[str, object], options: Options, why: str = "is not supported") -> InputError:
    message = f"preprocessor_config.json says {key} = {given.get(key)!r:.80}, which {why}"
    return InputError("VD3015", message, file=options.path, fix="correct the file, or describe the input in a spec file")


def _kind(file: Mapping[str, object], options: Options) -> str:
    """The processor's class, a key of `PROCESSORS`."""
    for key in ("image_processor_type", "feature_extractor_type"):
        if key in file:
            name = str(file[key])
            kinds = [name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)]
            if not kinds or kinds[0] not in PROCESSORS:
                raise _refuse(key, file, options)
            return kinds[0]
    return options.family.processor


def _geometry(given: Mapping[str, object], options: Options) -> _Geometry:
    """Size and resize of the contract."""
    crop = _sides(given["crop_size"]) if given["do_center_crop"] else None
    if given["do_center_crop"] and crop is None:
        raise _refuse("crop_size", given, options, "is no size in pixels")
    if not given["do_resize"]:
        if crop:
            raise _refuse("do_resize", given, options, "leaves images of any size to the crop")
        height, width = options.pair("image_size")
        return {"height": height, "width": width, "resize": "none"}
    size = given["size"]
    if isinstance(size, dict) and size.keys() == {"shortest_edge"}:
        size, square = size["shortest_edge"], False
    else:
        square = bool(given["square"])
    if square or isinstance(size, dict):
        return _read_stretch(_sides(size), crop, given, options)
    if not _positive(size):
        raise _refuse("size", given, options, "is no size in pixels")
    if crop is None:
        raise _refuse("size", given, options, "without a crop gives images of any shape")
    return {"height": crop[0], "width": crop[1], "resize": "shortest", "resize_to": size}


def _read_stretch(
    sides: tuple[int, int] | None, crop: tuple[int, int] | None, given: Mapping[str, object], options: Options
) -> _Geometry:
    if sides is None:
        raise _refuse("size", given, options, "is no size in pixels")
    if crop is None or crop == sides:
        return {"height": sides[0], "width": sides[1], "resize": "stretch"}
    to = max(sides)
    if tuple(round(side * to / max(crop)) for side in crop) != sides:
        raise _refuse("crop_size", given, options, f"has another shape than the {sides[0]} x {sides[1]} it is cut from")
    return {"height": crop[0], "width": crop[1], "resize": "stretch", "resize_to": to}


def _sides(size: object) -> tuple[int, int] | None:
    """Height and width, from a dictionary or one number; None for anything else."""
    if isinstance(size, dict):
        height, width = (size.get("height"), size.get("width")) if size.keys() == {"height", "width"} else (None, None)
    else:
        height = width = size
    return (height, width) if _positive(height) and _positive(width) else None


def _positive(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _filter(given: Mapping[str, object], options: Options) -> Literal["bilinear", "bicubic"]:
    code = given["resample"]
    if type(code) is not int or code not in _FILTERS:
        name = _OTHER_FILTERS.get(code, "unknown") if type(code) is int else "unknown"
        message = f"preprocessor_config.json says resample = {code!r:.80} ({name}); bilinear (2) and bicubic (3) are supported"
        raise UsageError("VD2011", message, file=options.path, fix="set it to 2 or 3 and measure what that changes")
    return "bicubic" if code == 3 else "bilinear"


def _statistics(given: Mapping[str, object], options: Options) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation on the scale [0, 1], whatever the factor: (f x - m) / s = (x/255 - m/k) / (s/k), k = 255 f."""
    channels = options.integer("num_channels")
    factor = 255 * given["rescale_factor"] if given["do_rescale"] and _real(given["rescale_factor"]) else 255.0
    if given["do_rescale"] and not (_real(given["rescale_factor"]) and factor > 0):
        raise _refuse("rescale_factor", given, options)
    factor = 1.0 if abs(factor - 1) < 1e-6 else factor
    scaled = []
    for key, neutral in (("image_mean", 0.0), ("image_std", 1.0)):
        value = given[key] if given["do_normalize"] else neutral
        given_values = value if isinstance(value, (list, tuple)) else [value]
        values = [number for number in given_values if _real(number)]
        if len(values) < len(given_values):
            raise _refuse(key, given, options, "holds something that is no number")
        if len(set(values)) == 1:  # one number for every channel, however many there are
            values = values[:1] * channels
        scaled.append(tuple(number / factor for number in values))
    return scaled[0], scaled[1]


def _real(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
