"""The table of what loads in vitdeploy/checkpoints/README.md, made from the cases that the tests hold to the source libraries.

    python tests/checkpoints/what_loads.py          print it

`tests/contract/test_pages.py` fails when the page has another one.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.checkpoints.huggingface_cases import HUGGINGFACE
from tests.checkpoints.timm_cases import CASES as TIMM

OTHERS = (
    ("torchvision", "ViT", ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14")),
    ("Meta", "DINO, DINOv2, DINOv3, MAE, DeiT", ("the original .pth files, also chunked, in teacher or model wrappers",)),
    ("Google (JAX .npz)", "ViT, AugReg, big_vision, SigLIP", ("any size",)),
    ("OpenAI CLIP, open_clip", "CLIP image tower", ("state dicts, with or without the text tower",)),
)


def table() -> str:
    """Markdown, one line a library and family."""
    lines = ["| from | family | architectures held to it by a test |", "|---|---|---|"]
    for library, cases in (
        ("Hugging Face", [(case.family, case.architecture) for case in HUGGINGFACE]),
        ("timm", [(case.family, case.name) for case in TIMM]),
    ):
        for family in dict.fromkeys(family for family, _ in cases):
            names = dict.fromkeys(name for other, name in cases if other == family)
            lines.append(f"| {library} | {family} | {', '.join(f'`{name}`' for name in names)} |")
    lines += [f"| {library} | {family} | {', '.join(names)} |" for library, family, names in OTHERS]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
