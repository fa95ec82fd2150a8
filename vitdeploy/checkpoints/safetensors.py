"""safetensors with our own names, read strictly: every tensor accounted for, nothing loaded in part.

The safetensors library checks offsets and dtypes; duplicate names and non-finite numbers pass it, so they are checked
here. Separate query, key and value projections are packed; a learned position table moves to the model's grid.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from vitdeploy.checkpoints.headers import read_header
from vitdeploy.errors import InputError
from vitdeploy.models import positions, relative
from vitdeploy.models.vit import VisionTransformer
from vitdeploy.spec import ModelSpec

State = dict[str, Tensor]
_SEPARATE = (
    (".attn.q.", (".attn.k.", ".attn.v."), ".attn.qkv."),
    (".mlp.fc1_g.", (".mlp.fc1_x.",), ".mlp.fc1."),
    ("attn_pool.k.", ("attn_pool.v.",), "attn_pool.kv."),
)
"""Name of the first part, of the others in order, and of the whole."""
_AGAIN = "download or write it again"


def read(path: Path, *, integers: str = "refuse") -> State:
    """Read a safetensors file as float32 tensors.

    Args:
        path: The file.
        integers: ``refuse`` or ``keep`` tensors that are not floating-point numbers; other libraries store indices
            (``position_ids``, ``num_batches_tracked``) beside their weights.

    Returns:
        Name to float32 tensor, on the CPU; kept tensors in their own type.

    Raises:
        InputError: VD3001 to VD3005 for what is no safetensors file, VD3006 damaged, VD3007 duplicate names, VD3008
            NaN or infinity, VD3009 a tensor that is refused, VD3013 too large a header.
    """
    read_header(path)
    try:
        state = load_file(path)
    except safetensors.SafetensorError as exc:
        raise InputError("VD3006", f"is damaged: {exc}", file=path, fix=_AGAIN) from exc
    return as_float32(state, path, integers=integers)


def as_float32(state: State, path: Path, *, integers: str = "refuse") -> State:
    """Tensors of any floating-point type as float32, changed in place; see `read`.

    Raises:
        InputError: VD3008 NaN or infinity, VD3009 a tensor that is refused.
    """
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            if integers == "keep":
                state[name] = tensor.clone()
                continue
            message = f"tensor {name!r} is of type {str(tensor.dtype)[6:]}, weights are floating-point numbers"
            raise InputError("VD3009", message, file=path, fix="save the weights alone, before they are quantised")
        # a copy, so that nobody can change it behind us; before the test, since a large float64 becomes infinite here
        state[name] = tensor.to(torch.float32, copy=True)
        bad = int((~torch.isfinite(state[name])).sum())
        if bad:
            message = f"tensor {name!r} has {bad:,} values of {tensor.numel():,} that are NaN or infinite"
            raise InputError("VD3008", message, file=path, fix="use a checkpoint from before the training diverged")
    return state


def kinds(path: Path) -> tuple[str, ...]:
    """A sentence, if a safetensors file stores numbers in another type than the float32 that they are read as."""
    types = Counter(str(about.get("dtype")) for about in read_header(path).values())
    floats = {kind: count for kind, count in types.items() if kind[:1] in ("F", "B") and kind not in ("F32", "BOOL")}
    named = {"F16": "fp16", "BF16": "bf16", "F64": "float64"}
    total = sum(types.values())
    return tuple(f"{named.get(kind, kind)}, read as float32 ({count} of {total} tensors)" for kind, count in floats.items())


def assemble(
    spec: ModelSpec, state: State, grid: tuple[int, int] | None = None, *, file: Path | None = None
) -> VisionTransformer:
    """The model of a spec around a state dict, in evaluation mode; nothing is drawn or copied that the weights replace.

    Raises:
        InputError: VD3009, see `fill`.
    """
    with torch.device("meta"):
        model = VisionTransformer(spec)
    if spec.rotary != "none":
        model.cos, model.sin = positions.rotary(spec)
    fill(model, state, grid, file=file)
    return model.eval()


def fill(model: VisionTransformer, state: State, grid: tuple[int, int] | None = None, *, file: Path | None = None) -> None:
    """Put a state dict into a model: all of it, or an error that names what does not fit.

    Args:
        model: Built from the spec that the weights belong to, perhaps at another image size.
        state: Float32 tensors by our names; a model on the meta device keeps them, any other copies.
        grid: Rows and columns of the learned position table in ``state``; None means the model's, or a square.
        file: For messages.

    Raises:
        InputError: VD3009, missing, unexpected or mis-shaped tensors (first five of each named).
    """
    state = _pack(state)
    table = state.get("pos_embed")
    if table is not None and table.ndim == 3 and model.spec.position == "learned":
        state["pos_embed"] = _resample_positions(table, grid, model)
    for name, tensor in state.items():
        if name.endswith("rel_pos_bias.relative_position_bias_table"):
            state[name] = _resample_distances(tensor, grid, model)
    wanted = model.state_dict()
    patch = state.get("patch_embed.proj.weight")
    kernel = (model.spec.width, model.spec.input.channels, *model.spec.patch)
    if patch is not None and patch.shape in (kernel, (kernel[0], math.prod(kernel[1:]))):
        wanted_shape = wanted["patch_embed.proj.weight"].shape
        state["patch_embed.proj.weight"] = patch.reshape(wanted_shape)  # convolution and Linear: the same function
    missing = sorted(wanted.keys() - state.keys())
    unexpected = sorted(state.keys() - wanted.keys())
    shapes = [
        f"{name} {list(state[name].shape)} instead of {list(wanted[name].shape)}"
        for name in sorted(wanted.keys() & state.keys())
        if state[name].shape != wanted[name].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "mis-shaped": shapes}
    misfits = [
        f"{len(names)} {kind} ({', '.join(names[:5])}{', ...' * (len(names) > 5)})" for kind, names in problems.items() if names
    ]
    if misfits:
        message = f"does not fit the model {model.spec.name!r}: {'; '.join(misfits)}"
        raise InputError("VD3009", message, file=file, fix="check that model and weights belong together")
    model.load_state_dict(state, assign=any(tensor.is_meta for tensor in wanted.values()))  # meta: nothing to copy into


def _pack(state: State) -> State:
    """Separate projections as one: query, key, value as ``attn.qkv``; SwiGLU's gate and value as ``mlp.fc1``."""
    packed = dict(state)
    for name in state:
        for first, others, whole in _SEPARATE:
            stem, dot, kind = name.partition(first)
            parts = [f"{stem}{part}{kind}" for part in (first, *others)]
            if not (dot and all(part in packed for part in parts)):
                continue
            if state[name].ndim and len({packed[part].shape[1:] for part in parts}) == 1:  # else the name check names them
                packed[f"{stem}{whole}{kind}"] = torch.cat([packed.pop(part) for part in parts])
    return packed


def _resample_distances(table: Tensor, grid: tuple[int, int] | None, model: VisionTransformer) -> Tensor:
    """A table of relative positions at the model's grid."""
    distances = len(table) - relative.EXTRA if table.ndim == 2 else 0
    side = (math.isqrt(max(distances, 0)) + 1) // 2
    old = grid or (model.spec.grid if len(table) == model.spec.distances else (side, side))
    if (2 * old[0] - 1) * (2 * old[1] - 1) != distances:
        return table  # the shape check names it
    return relative.resample(table, old, model.spec)


def _resample_positions(table: Tensor, grid: tuple[int, int] | None, model: VisionTransformer) -> Tensor:
    extra = model.spec.positions - model.spec.patches
    patches = table.shape[1] - extra
    side = math.isqrt(max(patches, 0))
    old = grid or (model.spec.grid if patches == model.spec.patches else (side, side))
    if old[0] * old[1] != patches or patches < 1 or table.shape != (1, extra + patches, model.spec.width):
        return table  # the shape check names it
    return positions.resample(table, old, model.spec)


def rebuild(spec: ModelSpec, weights: Path) -> VisionTransformer:
    """The PyTorch model of an artifact, rebuilt from its spec and its state dict, in evaluation mode.

    Raises:
        InputError: See `read` and `assemble`.
    """
    return assemble(spec, read(weights), file=weights)
