"""Hugging Face folders: ``config.json``, ``preprocessor_config.json`` and a state dict; nothing of transformers is imported.

Names are those of the hub, or of transformers 5 in memory.

What ``pooled`` is for a model without a classifier, and what the classifier of the others takes:

    family              pooled                                        classifier takes
    ViT, DeiT           class token after the last norm; the          class token; the mean of two heads
                        pooler (tanh) is left out                     in DeiT "WithTeacher"
    ViT-MAE, ViT-MSN    class token after the last norm               class token (MSN)
    I-JEPA              mean of the patches after the last norm       the same
    DINOv2, registers   pooler_output: class token after the norm     [class token, mean of the patches]
    DINOv3              pooler_output: class token after the norm
    CLIP                pooler_output: class token after the last     mean of the patches without the last norm
                        norm; with a projection, ``embedding``
                        is image_embeds, not normalised
    SigLIP              pooler_output: attention pool                 mean of the patches after the last norm
    BEiT, data2vec      pooler_output: norm of the patches' mean,     the same
                        or class token (use_mean_pooling false); mean
                        without norm where no pooler was saved

``tokens`` is last_hidden_state; for CLIP, last_hidden_state after ``post_layernorm``, which transformers applies to the
class token alone. ViT-MAE sees all patches (mask_ratio 0), as for fine-tuning.

The input's size is the preprocessor's. Where it is not the one that the network was saved for, the position table is
resampled as transformers does with ``interpolate_pos_encoding=True``: bicubic without antialias, and with it for DINOv2
with registers; bilinear for BEiT's table of distances. See `processor` for what stands in for a missing file.

Source: transformers 5.23, ``models/*/modeling_*.py``, ``configuration_*.py`` and ``conversion_mapping.py``.
"""

from __future__ import annotations

from pathlib import Path

from vitdeploy.checkpoints.conversion import Rule
from vitdeploy.checkpoints.huggingface import beit, clip, dino, processor, vit
from vitdeploy.checkpoints.huggingface.family import Family, Options, add_prefix
from vitdeploy.checkpoints.source import Checkpoint, Source
from vitdeploy.checkpoints.timm import WRAPPER
from vitdeploy.errors import InputError
from vitdeploy.spec import ModelSpec, SpecFields

FAMILIES: dict[str, Family] = {
    kind: family for family in (*vit.FAMILIES, *dino.FAMILIES, *clip.FAMILIES, *beit.FAMILIES) for kind in family.types
}
"""`model_type` of ``config.json`` to its family."""

_FIX = "use --module with the model built by transformers"


def recognise(checkpoint: Checkpoint) -> bool:
    """Whether ``config.json`` is one of transformers; also for models that are not supported, so that `spec` can say so."""
    kind = checkpoint.config.get("model_type")
    return isinstance(kind, str) and kind != WRAPPER


def spec(checkpoint: Checkpoint, architecture: str | None) -> ModelSpec:
    """The network and its input, from the two configuration files; the size of a head is that of its weights.

    Args:
        checkpoint: What `recognise` accepted.
        architecture: A name for the model; its folder's without one.

    Raises:
        InputError: VD3015, a model type, class or option that is not supported; each is named with its value.
        UsageError: VD2011, a filter that is not supported; VD2004, an image size that is no multiple of the patch.
    """
    options = _options(checkpoint)
    family, contract = options.family, processor.contract(options)
    file = "" if checkpoint.preprocessor else f"; no preprocessor_config.json, so defaults of {family.processor}ImageProcessor"
    fields: SpecFields = {
        "name": architecture or _name(checkpoint.path),
        "source": family.source + file,
        "input": contract,
        "patch": options.pair("patch_size"),
        "width": options.integer("hidden_size"),
        "depth": options.integer("num_hidden_layers"),
        "heads": options.integer("num_attention_heads"),
        "head_width": None if options.value("head_dim") is None else options.integer("head_dim"),
        "mlp_width": options.integer("intermediate_size"),
        "qkv_bias": "qkv" if options.flag("qkv_bias") else "none",
        "position_resample": "bicubic",
        "norm_eps": options.number("layer_norm_eps"),
        **family.spec(options),
    }
    options.grid()  # sizes that are none are refused even where a preprocessor says another
    if fields["depth"] > len(checkpoint.state):
        raise options.refuse("num_hidden_layers", f"does not go with {len(checkpoint.state)} tensors")
    return ModelSpec(**fields)


def rules(checkpoint: Checkpoint, model: ModelSpec) -> tuple[Rule, ...]:
    """The table of the checkpoint's family, with and without the prefix of a whole model."""
    options = _options(checkpoint)
    return add_prefix(options.family.prefixes, options.family.rules(options, model))


def grid(checkpoint: Checkpoint) -> tuple[int, int] | None:
    """Rows and columns of patches that the tables of positions were saved for."""
    options = _options(checkpoint)
    rows, columns = options.grid()
    for name in ("embeddings.position_embeddings", "embeddings.position_embedding.weight"):
        table = options.tensor(name)
        if table is not None and (table.ndim < 2 or table.shape[-2] - rows * columns not in (0, 1, 2)):
            return None  # resampled after the configuration was written
    return rows, columns


def _options(checkpoint: Checkpoint) -> Options:
    config = checkpoint.config
    kind, names = config.get("model_type"), config.get("architectures")
    if not isinstance(kind, str) or kind not in FAMILIES:
        message = f"config.json says model_type = {kind!r:.80}; supported are {', '.join(sorted(FAMILIES))}"
        raise InputError("VD3015", message, file=checkpoint.path, fix=_FIX)
    family = FAMILIES[kind]
    if names and (not isinstance(names, list) or names[0] not in family.architectures):
        message = f"config.json says architectures = {names!r:.80}; supported are {', '.join(family.architectures)}"
        raise InputError("VD3015", message, file=checkpoint.path, fix=_FIX)
    options = Options(checkpoint, family)
    if config.get("quantization_config") is not None:
        raise InputError("VD3015", "holds quantised weights (quantization_config)", file=checkpoint.path, fix="use the original")
    return options


def _name(path: Path) -> str:
    """The folder's name, or the repository's in a cache of the hub (``models--owner--name/snapshots/commit``)."""
    folder = path.parent if path.suffix else path
    if folder.parent.name == "snapshots":
        folder = folder.parent.parent
    return folder.name.split("--")[-1] or "huggingface"


def read_fields(checkpoint: Checkpoint) -> tuple[str, ...]:
    """All, where there is a preprocessor_config.json: what it leaves out is its class's."""
    return ("mean", "std", "resize", "interpolation") if checkpoint.preprocessor else ()


SOURCE = Source("Hugging Face transformers", recognise, spec, rules, grid, read_fields=read_fields)
