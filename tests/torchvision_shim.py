"""Make ``import torchvision`` work where its wheel was built for a CUDA that the machine lacks.

torchvision registers shape rules for the operators ``nms`` and ``qnms`` when imported, and fails when its binary, which
declares them, does not load. No test uses them: declaring their names is enough.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

_OPERATORS: list[object] = []  # the declarations live as long as this list


def declare() -> None:
    """Declare ``torchvision::nms`` and ``torchvision::qnms`` unless torchvision's own binary does."""
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _OPERATORS or hasattr(torch.ops.torchvision, "nms"):
        return
    for binary in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(binary)
        except OSError:
            continue
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _OPERATORS.append(library)
