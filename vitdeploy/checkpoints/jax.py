"""Google's ViTs as ``.npz``: the paper's and AugReg's (google-research/vision_transformer), and big_vision's, SigLIP's included.

Every number of the network is in a shape: heads are an axis of their own in flax's attention kernels. What no shape says is
taken from that code: LayerNorm's epsilon 1e-6, GELU in its tanh form (`flax.linen.gelu`), tanh behind ``pre_logits``, and the
mean over patches where there is neither a class token nor an attention pool. timm and transformers run the same files with
the exact GELU; logits differ by about 1e-3 of their spread.

Source: Dosovitskiy et al. 2021 (arXiv:2010.11929); google-research/vision_transformer, vit_jax/models_vit.py;
google-research/big_vision, models/vit.py (with the older names in its `fix_old_checkpoints`).
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from vitdeploy.checkpoints.conversion import Rule, count
from vitdeploy.checkpoints.source import ANY_MODULE, Checkpoint, Source
from vitdeploy.errors import InputError, UsageError
from vitdeploy.spec import InputContract, ModelSpec, Pool, SpecFields

PAPER = "Dosovitskiy et al. 2021, An Image is Worth 16x16 Words, arXiv:2010.11929"
SIGLIP = "Zhai et al. 2023, Sigmoid Loss for Language Image Pre-Training, arXiv:2303.15343"

_EMBEDDING, _LAST_NORM = "embedding/kernel", "Transformer/encoder_norm/scale"
_TABLES = ("Transformer/posembed_input/pos_embedding", "Transformer/pos_embedding", "pos_embedding")  # oldest first
_BLOCK = "Transformer/encoderblock_{i}"
_LAYOUTS = {  # number of the attention, the second norm and the MLP: flax counted modules of all kinds together at first
    "1": ("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3"),
    "0": ("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0"),
}
_DAMAGED = "use the file as Google published it"


def recognise(checkpoint: Checkpoint) -> bool:
    """Whether the names are those of Google's ViT, stacked and hybrid ones included so that `spec` can name them."""
    return _prefix(checkpoint) is not None


def spec(checkpoint: Checkpoint, architecture: str | None) -> ModelSpec:
    """The model, from shapes alone.

    Args:
        checkpoint: What `recognise` accepted.
        architecture: A name for the result; nothing depends on it.

    Raises:
        InputError: VD3015, a relative that is not supported (hybrid, stacked blocks, fixed positions, NaFlex); VD3009,
            tensors of impossible shape.
    """
    _refuse_relatives(checkpoint)
    path, names = checkpoint.path, _strip(checkpoint)
    kernel, table = names[_EMBEDDING], names[_table_name(names)]
    height, across, channels, width = _shape(kernel, 4, _EMBEDDING, path)
    _, rows, _ = _shape(table, 3, "pos_embedding", path)
    attention, _, mlp = _LAYOUTS[_layout(names)]
    first = f"Transformer/encoderblock_0/{attention}/query/kernel"
    hidden = f"Transformer/encoderblock_0/{mlp}/Dense_0/kernel"
    if first not in names or hidden not in names:
        raise InputError("VD3009", "lacks the first block's attention or MLP", file=path, fix=_DAMAGED)
    _, heads, size = _shape(names[first], 3, first, path)
    _, mlp_width = _shape(names[hidden], 2, hidden, path)
    own = _own_position(rows, "cls" in names, path)
    side = math.isqrt(rows - own)
    pool: Pool = "map" if "MAPHead_0/probe" in names else "cls" if "cls" in names else "mean"
    head = _head(names, path, (_prefix(checkpoint) or "").endswith("img/"))
    _check_axes(checkpoint, heads)
    try:
        fields: SpecFields = {
            "name": architecture or path.stem or "vit",
            "source": SIGLIP if pool == "map" else PAPER,
            "input": _contract(side * height, side * across, channels, pool == "map"),
            "patch": (height, across),
            "patch_bias": "embedding/bias" in names,
            "width": width,
            "depth": count(tuple(names), f"{_BLOCK}/{attention}/query/kernel"),
            "heads": heads,
            "head_width": None if heads * size == width else size,
            "mlp": "gelu_tanh",
            "mlp_width": mlp_width,
            "class_token": "cls" in names,
            "position_prefix": bool(own),
            "pool": pool,
            **head,
        }
        return ModelSpec(**fields)
    except UsageError as exc:
        raise InputError("VD3015", exc.message, file=path, fix=_DAMAGED) from exc


def rules(checkpoint: Checkpoint, spec: ModelSpec) -> tuple[Rule, ...]:
    """The table, with the checkpoint's own prefix and numbering."""
    prefix, names = _prefix(checkpoint) or "", _strip(checkpoint)
    attention, norm, mlp = _LAYOUTS[_layout(names)]
    head, hidden = ("head.fc2", "head.fc1") if spec.head == "mlp" else ("head", "head")
    inner = [
        *_dense("embedding", "patch_embed.proj", "kernel"),
        Rule("cls", "cls_token", "token"),
        *(Rule(table, "pos_embed", "token") for table in _TABLES),
        *_norm(f"{_BLOCK}/LayerNorm_0", "blocks.{i}.norm1"),
        *_attention(f"{_BLOCK}/{attention}", "blocks.{i}.attn"),
        *_norm(f"{_BLOCK}/{norm}", "blocks.{i}.norm2"),
        *_mlp(f"{_BLOCK}/{mlp}", "blocks.{i}.mlp"),
        *_norm("Transformer/encoder_norm", "norm"),
        Rule("MAPHead_0/probe", "attn_pool.latent", "token"),
        *_attention("MAPHead_0/MultiHeadDotProductAttention_0", "attn_pool"),
        *_norm("MAPHead_0/LayerNorm_0", "attn_pool.norm"),
        *_mlp("MAPHead_0/MlpBlock_0", "attn_pool.mlp"),
        *_dense("pre_logits", hidden, "transpose"),
        *_dense("head", head, "transpose"),
    ]
    return (*(rule._replace(theirs=prefix + rule.theirs) for rule in inner), *_leave_out(prefix))


def _dense(theirs: str, ours: str, change: str) -> list[Rule]:
    return [Rule(f"{theirs}/kernel", f"{ours}.weight", change), Rule(f"{theirs}/bias", f"{ours}.bias")]


def _norm(theirs: str, ours: str) -> list[Rule]:
    return [Rule(f"{theirs}/scale", f"{ours}.weight"), Rule(f"{theirs}/bias", f"{ours}.bias")]


def _mlp(theirs: str, ours: str) -> list[Rule]:
    return [rule for n in (0, 1) for rule in _dense(f"{theirs}/Dense_{n}", f"{ours}.fc{n + 1}", "transpose")]


def _attention(theirs: str, ours: str) -> list[Rule]:
    rules = [*_dense(f"{theirs}/out", f"{ours}.proj", "heads out")]
    for part, letter in (("query", "q"), ("key", "k"), ("value", "v")):
        rules.append(Rule(f"{theirs}/{part}/kernel", f"{ours}.{letter}.weight", "heads in"))
        rules.append(Rule(f"{theirs}/{part}/bias", f"{ours}.{letter}.bias", "flatten"))
    return rules


def _leave_out(prefix: str) -> list[Rule]:
    outer = prefix.removesuffix("img/")
    rules = [Rule("opt/state/{any}", None, why="state of the optimiser")]
    if prefix != "opt/target/":
        rules.append(Rule("opt/{any}", None, why="state of the optimiser"))
    if outer != prefix:
        rules += [
            Rule(f"{outer}txt/{{any}}", None, why="the text tower: not part of the image tower"),
            Rule(f"{outer}t", None, why="scales the similarity of image and text; not part of the features"),
            Rule(f"{outer}b", None, why="shifts the similarity of image and text; not part of the features"),
        ]
    return rules


def _prefix(checkpoint: Checkpoint) -> str | None:
    """What stands before the image tower's names (``opt/target/``, ``params/``, ``params/img/``), or None for others."""
    names = set(checkpoint.names)
    starts = (name.removesuffix(_EMBEDDING) for name in checkpoint.names if name.endswith(_EMBEDDING))
    return next((start for start in starts if start + _LAST_NORM in names and re.fullmatch(r"(\w+/)*", start)), None)


def _strip(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Name without the prefix to shape, of the image tower."""
    prefix = _prefix(checkpoint) or ""
    return {
        name.removeprefix(prefix): tuple(tensor.shape) for name, tensor in checkpoint.state.items() if name.startswith(prefix)
    }


def _table_name(names: dict[str, tuple[int, ...]]) -> str:
    return next(table for table in _TABLES if table in names)


def _layout(names: dict[str, tuple[int, ...]]) -> str:
    return "1" if any("/MultiHeadDotProductAttention_1/" in name for name in names) else "0"


def _refuse_relatives(checkpoint: Checkpoint) -> None:
    names, reason = _strip(checkpoint), ""
    if any(name.startswith(("conv_root/", "block1/unit1/")) for name in names):
        reason = "is a hybrid: a ResNet before the Transformer, which is not supported"
    elif any(name.startswith("Transformer/encoderblock/") for name in names):
        reason = "holds all blocks stacked in one (big_vision's scan), which is not supported"
    elif not any(table in names for table in _TABLES):
        reason = "has no position table (big_vision's sincos2d), which is not supported"
    elif len(names[_EMBEDDING]) == 2 or names[_table_name(names)][:1] != (1,):
        reason = "takes images of any shape (NaFlex), which is not supported"
    if reason:
        raise InputError("VD3015", reason, file=checkpoint.path, fix=ANY_MODULE)


def _shape(shape: tuple[int, ...], axes: int, name: str, path: Path) -> tuple[int, ...]:
    if len(shape) != axes or min(shape) < 1:
        raise InputError("VD3009", f"tensor {name!r} has the shape {list(shape)}, not {axes} axes", file=path, fix=_DAMAGED)
    return shape


def _own_position(rows: int, class_token: bool, path: Path) -> int:
    """1 when the first row belongs to the class token (the paper's code), 0 when all are patches (big_vision's)."""
    for own in (0, 1) if class_token else (0,):
        if rows > own and math.isqrt(rows - own) ** 2 == rows - own:
            return own
    message = f"has a position table of {rows} rows, which are no square grid"
    raise InputError("VD3015", message, file=path, fix=ANY_MODULE)


def _head(names: dict[str, tuple[int, ...]], path: Path, beside_text: bool) -> SpecFields:
    """Fields of the head; beside a text tower it gives the embedding that both share (big_vision's two_towers.py)."""
    kernel, hidden = names.get("head/kernel"), names.get("pre_logits/kernel")
    if kernel is None and hidden is not None:
        raise InputError("VD3015", "has a representation layer but no classes behind it", file=path, fix=ANY_MODULE)
    if kernel is None:
        return {"head": "none", "classes": 0}
    classes = _shape(kernel, 2, "head/kernel", path)[1]
    facts: SpecFields = {"classes": classes, "head_bias": "head/bias" in names}
    if hidden is None:
        return {"head": "projection" if beside_text else "linear", **facts}
    return {"head": "mlp", "head_mlp_width": _shape(hidden, 2, "pre_logits/kernel", path)[1], **facts}


def _check_axes(checkpoint: Checkpoint, heads: int) -> None:
    """Refuse kernels that have not the axes that `rules` will turn, and heads that differ from those of the first block."""
    expected = {"query": 3, "key": 3, "value": 3, "out": 3, "Dense_0": 2, "Dense_1": 2, "head": 2, "pre_logits": 2}
    for name, shape in _strip(checkpoint).items():
        *_, parent, last = ("", *name.split("/"))
        if last == "kernel" and parent in expected:
            _shape(shape, expected[parent], name, checkpoint.path)
            real = {"query": shape[1], "key": shape[1], "value": shape[1], "out": shape[0]}.get(parent, heads)
            if real != heads:
                message = f"tensor {name!r} has {real} heads, the first block has {heads}"
                raise InputError("VD3015", message, file=checkpoint.path, fix=ANY_MODULE)
        if name in ("cls", "MAPHead_0/probe") and not shape:
            _shape(shape or (0,), 3, name, checkpoint.path)


def _contract(height: int, width: int, channels: int, siglip: bool) -> InputContract:
    """Scaled to [-1, 1].

    Source:
        google-research/vision_transformer and big_vision: ``value_range(-1, 1)``. Classifiers at 224 take the crop of
        floor(224 / 0.9) = 248 and finetuned larger ones the whole image, as timm restates it; SigLIP stretches
        (big_vision's configs/proj/image_text: ``resize(n)``).
    """
    half = (0.5,) * channels
    crop = math.floor(max(height, width) / 0.9) if max(height, width) == 224 and not siglip else None
    return InputContract(
        height=height,
        width=width,
        channels=channels,
        resize="stretch" if siglip else "shortest",
        resize_to=crop,
        mean=half,
        std=half,
        alpha="drop",  # TensorFlow decodes three channels
    )


SOURCE = Source("Google ViT (JAX)", recognise, spec, rules)
