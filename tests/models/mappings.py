"""Those of `systems` that a spec can say, each as a mapping file: for ``export mapping.toml --against`` without ``--module``."""

from __future__ import annotations

from pathlib import Path

import msgspec
from safetensors.torch import save_file

from tests.models import systems
from vitdeploy import files

SPEC: dict[str, int | float | str | bool] = {
    "width": systems.WIDTH,
    "depth": systems.DEPTH,
    "heads": systems.HEADS,
    "mlp_width": 2 * systems.WIDTH,
    "classes": systems.CLASSES,
    "norm_eps": 1e-5,
}
RENAME = {
    r"cut\.(\w+)": r"patch_embed.proj.\1",
    "token": "cls_token",
    "places": "pos_embed",
    r"blocks\.(\d+)\.before\.(\w+)": r"blocks.\1.norm1.\2",
    r"blocks\.(\d+)\.between\.(\w+)": r"blocks.\1.norm2.\2",
    r"blocks\.(\d+)\.attention\.out\.(\w+)": r"blocks.\1.attn.proj.\2",
    r"blocks\.(\d+)\.mlp\.0\.(\w+)": r"blocks.\1.mlp.fc1.\2",
    r"blocks\.(\d+)\.mlp\.2\.(\w+)": r"blocks.\1.mlp.fc2.\2",
    r"norm\.(\w+)": r"norm.\1",
}
PACKED = {r"blocks\.(\d+)\.attention\.qkv\.(\w+)": r"blocks.\1.attn.qkv.\2"}
APART = {r"blocks\.(\d+)\.attention\.([qkv])\.(\w+)": r"blocks.\1.attn.\2.\3"}
HEAD = {r"head\.(\w+)": r"head.\1"}
TWO_LAYERS = {r"head\.0\.(\w+)": r"head.fc1.\1", r"head\.2\.(\w+)": r"head.fc2.\1"}


class Mapping(msgspec.Struct, frozen=True):
    """What a system's file says beside `SPEC` and `RENAME`.

    Attributes:
        spec: Fields of the spec.
        rename: Pattern to our name.
        change: Pattern of our name to what is done to its numbers.
        unused: Names that are left out of `RENAME` and left out by the file.
    """

    spec: dict[str, int | float | str | bool] = {}
    rename: dict[str, str] = msgspec.field(default_factory=lambda: PACKED | HEAD)
    change: dict[str, str] = {}
    unused: tuple[str, ...] = ()


MAPPINGS = {
    "single_head": Mapping({"heads": 1, "head_width": 3 * systems.WIDTH // 2}),
    "wide_heads": Mapping({"head_width": 3 * systems.WIDTH // 2 // systems.HEADS}),
    "own_channels": Mapping(rename=APART | HEAD, change={r"blocks\.\d+\.attn\.[qkv]\.\w+": "blocks"}),
    "tanh_head": Mapping({"head": "mlp"}, PACKED | TWO_LAYERS),
    "sinusoidal": Mapping({"position": "sinusoidal", "class_token": False, "pool": "mean"}, unused=("token", "places")),
    "registers": Mapping({"registers": 4}, PACKED | HEAD | {"registers": "reg_token"}),
    "grey_pixels": Mapping(),
    "extra_axis": Mapping(),
    "pair": Mapping(),
}
"""Name of a system to its mapping. What the others do no field of the spec says, so they are exported as modules alone."""


def write(name: str, folder: Path) -> tuple[Path, Path]:
    """A system's mapping file and its weights, in an existing folder."""
    mapping, (side, channels) = MAPPINGS[name], systems.size_images(name)
    spec = SPEC | {"name": name} | mapping.spec
    patch = 1 if channels == 1 else systems.PATCH
    rename = {theirs: ours for theirs, ours in (RENAME | mapping.rename).items() if theirs not in mapping.unused}
    lines = [
        "[spec]",
        *(f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}" for key, value in spec.items()),
    ]
    half = [0.5] * channels
    lines.append(f"patch = [{patch}, {patch}]")
    lines.append(
        f'input = {{ height = {side}, width = {side}, channels = {channels}, resize = "stretch", mean = {half}, std = {half} }}'
    )
    lines += ["[rename]", *(f"'{theirs}' = '{ours}'" for theirs, ours in rename.items())]
    lines += ["[leave_out]", *(f"{theirs} = 'not used'" for theirs in mapping.unused)]
    lines += ["[change]", *(f"'{ours}' = '{change}'" for ours, change in mapping.change.items())]
    written, weights = folder / "mapping.toml", folder / "weights.safetensors"
    files.write(written, "\n".join(lines).encode())
    save_file({part: value.clone().contiguous() for part, value in systems.build(name).state_dict().items()}, weights)
    return written, weights
