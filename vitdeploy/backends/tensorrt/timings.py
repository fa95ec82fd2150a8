"""Where the builder's timings are kept: they belong to one device, driver, CUDA and TensorRT, and to no other."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from vitdeploy.backends.tensorrt.key import EngineKey
from vitdeploy.files import find_base

NAME = "timing.cache"


def timing_cache(key: EngineKey) -> Path:
    """The file for engines of this key, below ``$XDG_CACHE_HOME/vitdeploy/tensorrt`` or ``~/.cache``; it need not exist.

    Engines of other models and settings share it: the library itself tells their kernels apart. With it a second build takes
    the kernels that the first one chose; without it two builds may choose differently.
    """
    base = find_base("XDG_CACHE_HOME", ".cache")
    place = (key.device, key.capability, key.driver, key.cuda, key.tensorrt)
    return base / "vitdeploy" / "tensorrt" / hashlib.sha256(msgspec.json.encode(place)).hexdigest()[:16] / NAME
