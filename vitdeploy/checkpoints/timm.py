"""timm's checkpoints: a state dict and the architecture's name, or the folder that timm's hub makes of the two.

Names are ours but for a few. Shapes tell most of the network (`shapes`), the name the rest (`timm_names`), and config.json,
where there is one, overrules the name. timm itself is not needed. The result is what ``timm.create_model(name)`` computes,
prepared as timm's evaluation prepares pixels.

What the name says of the size must be what the shapes say: heads have no shape, so a wrong name would compute something
else without complaint. Only the depth, which changes no fact, may differ; that is noted.

A name beside weights is timm's network: its pool, crop and resampling. The same name alone, without weights, is the variant of
`vitdeploy.zoo.variants`: the same tensors, but pooled and prepared as the paper's authors did (and with SigLIP's own activation,
and CLIP's projection for a head). tests/checkpoints/test_timm.py lists every difference.

Source:
    timm 1.0.31: models/_hub.py (config.json), data/transforms_factory.py (``transforms_imagenet_eval``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

import msgspec

from vitdeploy.checkpoints import shapes
from vitdeploy.checkpoints.conversion import Rule, State, convert, has_matches
from vitdeploy.checkpoints.source import ANY_MODULE, Checkpoint, Source, read_problem
from vitdeploy.checkpoints.timm_names import Architecture, understand
from vitdeploy.contract import SMALLEST_WITH_MARGIN
from vitdeploy.errors import InputError
from vitdeploy.spec import InputContract, Mlp, ModelSpec, Pool, SpecFields
from vitdeploy.zoo.variants import VARIANTS

_RELATIVE = "rel_pos_bias.relative_position_bias_table"
_ROTARY = "the rotary table is computed from the image size"
_COMPUTED = "which row of the table belongs to which two patches, which is computed"
_KEEP = (  # the same name on both sides
    *("cls_token", "dist_token", "reg_token", "pos_embed", "patch_embed.proj.{kind}", "norm_pre.{kind}"),
    *(f"blocks.{{i}}.{part}.{{kind}}" for part in ("norm1", "norm2", "attn.qkv", "attn.proj", "attn.norm")),
    *(f"blocks.{{i}}.{part}.{{kind}}" for part in ("attn.q_norm", "attn.k_norm", "mlp.fc1_g", "mlp.fc1_x")),
    *(f"blocks.{{i}}.{part}.{{kind}}" for part in ("mlp.fc1", "mlp.fc2", "mlp.norm")),
    *("blocks.{i}.attn.q_bias", "blocks.{i}.attn.v_bias", "blocks.{i}.ls1.gamma", "blocks.{i}.ls2.gamma"),
    *(f"attn_pool.{part}.{{kind}}" for part in ("q", "kv", "proj", "norm", "mlp.fc1", "mlp.fc2")),
    *("attn_pool.latent", "norm.{kind}", "fc_norm.{kind}", "head.{kind}", "head_dist.{kind}"),
)
KEPT = tuple(Rule(name, name) for name in _KEEP)
"""Names that timm and vitdeploy share."""

RULES: tuple[Rule, ...] = (
    *KEPT,
    Rule("blocks.{i}.gamma_1", "blocks.{i}.ls1.gamma"),
    Rule("blocks.{i}.gamma_2", "blocks.{i}.ls2.gamma"),
    Rule("blocks.{i}.attn.q_proj.bias", "blocks.{i}.attn.q_bias"),
    Rule("blocks.{i}.attn.v_proj.bias", "blocks.{i}.attn.v_bias"),
    Rule("blocks.{i}.attn.q_proj.weight", "blocks.{i}.attn.q.weight"),
    Rule("blocks.{i}.attn.k_proj.weight", "blocks.{i}.attn.k.weight"),
    Rule("blocks.{i}.attn.v_proj.weight", "blocks.{i}.attn.v.weight"),
    Rule("blocks.{i}.attn.inner_attn_ln.{kind}", "blocks.{i}.attn.norm.{kind}"),  # from here to w3: EVA-02's authors
    Rule("blocks.{i}.mlp.ffn_ln.{kind}", "blocks.{i}.mlp.norm.{kind}"),
    Rule("blocks.{i}.mlp.w12.{kind}", "blocks.{i}.mlp.fc1.{kind}"),
    Rule("blocks.{i}.mlp.w1.{kind}", "blocks.{i}.mlp.fc1_g.{kind}"),
    Rule("blocks.{i}.mlp.w2.{kind}", "blocks.{i}.mlp.fc1_x.{kind}"),
    Rule("blocks.{i}.mlp.w3.{kind}", "blocks.{i}.mlp.fc2.{kind}"),
    Rule("blocks.{i}.attn.rope.{any}", None, why=_ROTARY),
    Rule("blocks.{i}.attn.relative_position_bias_table", f"blocks.{{i}}.attn.{_RELATIVE}"),
    Rule("blocks.{i}.attn.relative_position_index", None, why=_COMPUTED),
    Rule(_RELATIVE, _RELATIVE),
    Rule("rel_pos_bias.relative_position_index", None, why=_COMPUTED),
    Rule("blocks.{i}.attn.k_bias", None, why="a constant of zeros"),
    Rule("rope.freqs_cos", None, why=_ROTARY),
    Rule("rope.freqs_sin", None, why=_ROTARY),
    Rule("rope.pos_embed", None, why=_ROTARY),
    Rule("rope.bands", None, why=_ROTARY),
    Rule("rope.periods", None, why=_ROTARY),
)
"""timm's names, our names."""

WRAPPER = "timm_wrapper"
"""`model_type` of a folder that transformers wrote around a network of timm's."""

_MLPS, _TABLES = ("plain", "SwiGLU"), ("none", "learned")
_Word = TypeVar("_Word", bound=str)
_POOLS: dict[str, Pool] = {"token": "cls", "avg": "mean", "max": "max", "map": "map"}
_ACTIVATIONS: dict[str, Mlp] = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "quickgelu": "quick_gelu",
    "relu": "relu",
}
_FROM_SHAPES = {
    *("img_size", "in_chans", "num_classes", "mlp_ratio", "qkv_bias", "qkv_fused", "qk_norm"),
    *("init_values", "class_token", "no_embed_class", "reg_tokens", "pre_norm", "final_norm", "fc_norm", "use_fc_norm"),
    *("scale_mlp", "scale_attn_inner", "scale_attn_norm", "scale_mlp_norm", "use_pre_transformer_norm"),
    *("use_post_transformer_norm", "num_reg_tokens", "swiglu_align_to", "proj_bias"),
    *("use_rel_pos_bias", "use_shared_rel_pos_bias"),
}
_TRAINING_ONLY = {
    *("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "weight_init"),
    *("fix_init", "dynamic_img_size", "dynamic_img_pad", "strict_img_size", "head_init_scale", "pretrained_strict"),
}


class Prepared(msgspec.Struct, frozen=True):
    """How pixels were prepared, as timm's config.json says it: in ``pretrained_cfg``, or beside the architecture."""

    input_size: tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None
    interpolation: str | None = None
    label_names: list[str] | None = None


class Arguments(msgspec.Struct, frozen=True):
    """Arguments of timm's constructor that change what the name says, or that shapes can't tell."""

    num_heads: int | None = None
    act_layer: str | None = None
    global_pool: str | None = None
    embed_dim: int | None = None
    depth: int | None = None
    patch_size: int | tuple[int, int] | None = None
    swiglu_mlp: bool | None = None
    pos_embed: str | None = None
    use_abs_pos_emb: bool | None = None


class Config(Prepared, frozen=True):
    """What is read of timm's config.json."""

    architecture: str | None = None
    global_pool: str | None = None
    model_args: dict[str, Any] | None = None
    pretrained_cfg: Prepared | None = None
    id2label: dict[str, str] | None = None


def recognise(checkpoint: Checkpoint) -> bool:
    """By the architecture in config.json, or by timm's names."""
    if "architecture" in checkpoint.config and checkpoint.config.get("model_type", WRAPPER) == WRAPPER:
        return True
    return has_matches(checkpoint.names, "patch_embed.proj.weight", "blocks.{i}.norm1.weight", "blocks.{i}.attn.{any}")


def spec(checkpoint: Checkpoint, architecture: str | None) -> ModelSpec:
    """What ``timm.create_model`` would build around these weights.

    Raises:
        InputError: VD3015, no architecture's name, or a network or preparation that vitdeploy has not; VD3009, tensors are
            missing or are not of the size that the name says.
        UsageError: VD2001, no such architecture.
    """
    config = _config(checkpoint)
    name = architecture or config.architecture
    if name is None:
        message = "holds timm's weights but not the architecture's name, which alone tells heads, activation and pool"
        fix = "give the architecture's name: vitdeploy export NAME --weights FILE -o OUT"
        raise InputError("VD3015", message, file=checkpoint.path, fix=fix)
    known = understand(name, checkpoint.path)
    state = convert(checkpoint.state, RULES).state
    read = shapes.fields(state, checkpoint.path)
    arguments = _arguments(checkpoint)
    heads = _heads(checkpoint, known, arguments, read, state)
    inner = shapes.inner(state)
    facts: SpecFields = {**known.family.facts}
    if read["mlp"] == "swiglu":
        facts.pop("mlp", None)
    elif arguments.act_layer is not None:
        facts["mlp"] = _choice(_ACTIVATIONS, arguments.act_layer, "act_layer", checkpoint)
    facts["pool"] = _pool(checkpoint, known, read, arguments.global_pool or config.global_pool)
    if read["distillation_token"] and read["head"] != "distilled":
        message = "has a distillation token but not the two heads whose outputs DeiT averages"
        raise InputError("VD3015", message, file=checkpoint.path, fix="give the checkpoint with head and head_dist")
    grid, placed = _grid(checkpoint, known.family.side)
    side = (grid[0] * read["patch"][0], grid[1] * read["patch"][1])
    fields: SpecFields = {
        "name": known.name,
        "source": VARIANTS[known.name].spec.source if known.name in VARIANTS else f"timm, {known.name}",
        "input": _contract(checkpoint, known, side),
        "heads": heads,
        "head_width": inner // heads if inner and inner != read["width"] else None,
        "labels": _labels(checkpoint, read["classes"]),
        "problem": read_problem(checkpoint) if read["classes"] else "single_label",
        **read,
        **placed,
        **facts,
    }
    return ModelSpec(**fields)


def rules(checkpoint: Checkpoint, spec: ModelSpec) -> tuple[Rule, ...]:
    """The table."""
    return RULES


def grid(checkpoint: Checkpoint) -> tuple[int, int] | None:
    """Rows and columns of the position tables, from their rows and the configuration's image size."""
    tables = any(has_matches(checkpoint.names, name) for name in ("pos_embed", "{any}.relative_position_bias_table"))
    return _grid(checkpoint, 0)[0] if tables else None


def notes(checkpoint: Checkpoint, spec: ModelSpec) -> tuple[str, ...]:
    """Whether the stack is shorter or taller than the name's."""
    known = understand(spec.name, checkpoint.path)
    if spec.depth in (known.size.depth, _arguments(checkpoint).depth):
        return ()
    return (f"has {spec.depth} blocks, {known.name} has {known.size.depth}",)


def contract(side: tuple[int, int], prepared: Prepared, checkpoint: Checkpoint) -> InputContract:
    """The input contract of timm's settings.

    Args:
        side: Height and width of the input, in pixels.
        prepared: The settings, all but the last and the first given.
        checkpoint: For the number of channels and messages.

    Raises:
        InputError: VD3015, a preparation that the contract can't say.
    """
    channels = checkpoint.state["patch_embed.proj.weight"].shape[1]
    share, squash = prepared.crop_pct or 0.0, prepared.crop_mode == "squash"
    if prepared.crop_mode not in ("center", "squash") or (squash and share != 1) or not 0 < share <= 1:
        message = (
            f"prepares pixels with crop_mode {prepared.crop_mode!r} and crop_pct {share}, which the input contract can't say"
        )
        raise InputError("VD3015", message, file=checkpoint.path, fix="use 'center', or 'squash' with crop_pct 1.0")
    filters: dict[str, Literal["bicubic", "bilinear"]] = {"bicubic": "bicubic", "bilinear": "bilinear"}
    interpolation = _choice(filters, prepared.interpolation, "interpolation", checkpoint)
    return InputContract(
        height=side[0],
        width=side[1],
        channels=channels,
        resize="stretch" if squash else "shortest",
        resize_to=None if squash else math.floor(max(side) / share),
        interpolation=interpolation,
        mean=_spread(prepared.mean or (0.0,), channels),
        std=_spread(prepared.std or (1.0,), channels),
        alpha="drop",  # timm, data/dataset.py: convert("RGB")
    )


def _config(checkpoint: Checkpoint) -> Config:
    try:
        return msgspec.convert(checkpoint.config, Config)
    except msgspec.ValidationError as exc:
        raise InputError("VD3015", f"has a config.json that is not timm's: {exc}", file=checkpoint.path) from exc


def _read_preparation(checkpoint: Checkpoint) -> Prepared:
    config = _config(checkpoint)
    return config.pretrained_cfg or config


def _arguments(checkpoint: Checkpoint) -> Arguments:
    """Arguments of timm's constructor in config.json; none that shapes can't confirm goes unread."""
    given = _config(checkpoint).model_args or {}
    unknown = sorted(given.keys() - _FROM_SHAPES - _TRAINING_ONLY - set(Arguments.__struct_fields__))
    if unknown:
        message = f"was made with the argument {unknown[0]!r} of timm's, which vitdeploy does not know"
        raise InputError("VD3015", message, file=checkpoint.path, fix=ANY_MODULE)
    try:
        return msgspec.convert(given, Arguments)
    except msgspec.ValidationError as exc:
        raise InputError("VD3015", f"has model_args in config.json that are not timm's: {exc}", file=checkpoint.path) from exc


def _heads(checkpoint: Checkpoint, known: Architecture, arguments: Arguments, read: SpecFields, state: State) -> int:
    """The configuration's heads, or the name's, once all else that they say has been found in the shapes.

    Raises:
        InputError: VD3009, these are no weights of that name.
    """
    heads = arguments.num_heads or known.size.heads
    inner, normed = shapes.inner(state) or read["width"], shapes.head_size(state)
    given = msgspec.structs.asdict(arguments)
    patch = known.patch if arguments.patch_size is None else arguments.patch_size
    depth = read["depth"] if arguments.depth is None else arguments.depth
    gated = known.gated if arguments.swiglu_mlp is None else arguments.swiglu_mlp
    learned = read["position"] == "learned"
    table = known.table if arguments.pos_embed is None and arguments.use_abs_pos_emb is None else learned
    claims: tuple[tuple[str, str, object, object], ...] = (  # argument of timm's, in words, as said, as found
        ("embed_dim", "width", arguments.embed_dim or known.size.width, read["width"]),
        ("patch_size", "patch", (patch, patch) if isinstance(patch, int) else patch or read["patch"], read["patch"]),
        ("depth", "depth", depth, read["depth"]),
        ("num_heads", "heads", heads, heads if normed is None else inner // max(1, normed)),
        ("swiglu_mlp", "MLP", _MLPS[gated], _MLPS[read["mlp"] == "swiglu"]),
        ("pos_embed", "position table", _TABLES[table], _TABLES[learned]),
    )
    for argument, what, said, real in claims:
        if said != real:
            who = known.name if given[argument] is None else "config.json"
            message = f"{who} has {what} {said}, the weights have {real}"
            fix = f"give the weights' own name, or a spec file for a ViT of your own; if timm was told another {argument}, "
            fix += "a folder whose config.json says so in model_args"
            raise InputError("VD3009", message, file=checkpoint.path, fix=fix)
    if heads < 1 or inner % heads:
        message = f"has queries of {inner} numbers, which {heads} heads can't share"
        raise InputError("VD3009", message, file=checkpoint.path, fix="correct num_heads in config.json")
    return heads


def _pool(checkpoint: Checkpoint, known: Architecture, read: SpecFields, given: str | None) -> Pool:
    """The configuration's pool, else what the tensors force, else the family's; timm moves the last norm for averages."""
    if read["pool"] == "map":
        if read["class_token"] or read["registers"]:
            message = "pools by attention to the patches alone, while it has other tokens; vitdeploy's pool sees all tokens"
            raise InputError("VD3015", message, file=checkpoint.path, fix=ANY_MODULE)
        return "map"
    if given is not None:
        return _choice(_POOLS, given, "global_pool", checkpoint)
    if not read["class_token"] or read["final_norm"] == "pooled":
        return "mean"
    return known.family.facts.get("pool", "cls")


def _grid(checkpoint: Checkpoint, side: int) -> tuple[tuple[int, int], SpecFields]:
    """Rows and columns of patches, and which prefix tokens have positions; ``side`` is the family's, in pixels."""
    state = convert(checkpoint.state, RULES).state
    read = shapes.fields(state, checkpoint.path)
    height, width = (_read_preparation(checkpoint).input_size or (0, side, side))[1:]
    hint = (height // read["patch"][0], width // read["patch"][1])
    if read["position"] == "none":
        return shapes.distances(state, hint) or hint, {}
    positions = shapes.places(state, read, hint, checkpoint.path)
    return positions.grid, positions.fields


def _contract(checkpoint: Checkpoint, known: Architecture, side: tuple[int, int]) -> InputContract:
    family, given = known.family, _read_preparation(checkpoint)
    small = max(side) < min(SMALLEST_WITH_MARGIN, family.side)
    named = Prepared(
        mean=family.statistics[0],
        std=family.statistics[1],
        crop_pct=1.0 if small else family.crop,
        crop_mode="squash" if family.squash else "center",
        interpolation=family.interpolation,
    )
    settings = {key: getattr(given, key) for key in named.__struct_fields__ if getattr(given, key) is not None}
    return contract(side, msgspec.structs.replace(named, **settings), checkpoint)


def _labels(checkpoint: Checkpoint, classes: int) -> tuple[str, ...]:
    config = _config(checkpoint)
    numbered = config.id2label or {}
    names = [numbered[str(place)] for place in range(classes) if str(place) in numbered]
    names = names or config.label_names or _read_preparation(checkpoint).label_names or []
    return tuple(names) if len(names) == classes else ()


def _choice(known: Mapping[str, _Word], given: str | None, what: str, checkpoint: Checkpoint) -> _Word:
    if given not in known:
        message = f"has {what} {given!r}; vitdeploy knows {', '.join(known)}"
        raise InputError("VD3015", message, file=checkpoint.path)
    return known[str(given)]


def _spread(values: Iterable[float], channels: int) -> tuple[float, ...]:
    """One value a channel; where the counts differ, their average for each."""
    given = tuple(values)
    return given if len(given) == channels else (sum(given) / len(given),) * channels


def read_fields(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What config.json says of the preparation."""
    given = _read_preparation(checkpoint)
    said = {
        "mean": given.mean,
        "std": given.std,
        "resize": given.crop_pct or given.crop_mode,
        "interpolation": given.interpolation,
    }
    return tuple(name for name, value in said.items() if value is not None)


SOURCE = Source("timm", recognise, spec, rules, grid, notes, read_fields)
