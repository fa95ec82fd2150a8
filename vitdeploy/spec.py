"""What a model is, without torch: the architecture's numbers and the contract of its input.

A `ModelSpec` together with a state dict is the whole model. It travels in ``artifact.json`` and in the ONNX file's
metadata, so that a device knows how to prepare a pixel without the training code.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal, TypedDict

import msgspec

from vitdeploy.contract import InputContract as InputContract
from vitdeploy.errors import UsageError
from vitdeploy.tomlfile import read_toml
from vitdeploy.words import Problem, Task

LARGEST = 1 << 16
"""No size of a network is larger; specs come from files of strangers, too."""

Position = Literal["learned", "sinusoidal", "sincos2d", "conditional", "none"]
Rotary = Literal["none", "eva02", "dinov3"]
Mlp = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "swiglu", "linear"]
Pool = Literal["cls", "mean", "max", "cls+mean", "map"]
QkvBias = Literal["qkv", "qv", "none"]
Resample = Literal["bicubic-antialias", "bicubic", "bicubic-offset"]
Relative = Literal["none", "blocks", "shared"]
FinalNorm = Literal["tokens", "pooled", "none"]
Head = Literal["none", "linear", "mlp", "distilled", "projection"]


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which Vision Transformer: enough to build it with nothing else but weights.

    Symbols follow the ViT paper (Dosovitskiy et al. 2021, arXiv:2010.11929): N patches of P x P, width D, L blocks.

    Attributes:
        name: A variant's name, or the user's.
        network: ``vit``, or ``module`` for a network of the user's own code, of which only input, classes and labels are
            known here.
        source: Paper or repository that the numbers come from.
        input: How images become the input; its size is the image size.
        patch: Patch height and width, in pixels.
        embed: Patch embedding as a strided convolution or as flatten-and-linear; the same function.
        patch_bias: Whether the patch embedding has a bias (CLIP's has none).
        width: D, the token width.
        depth: L, the number of blocks.
        heads: Attention heads per block.
        head_width: Width of one head; None is width / heads. heads x head_width may differ from width; head_width = width
            gives every head the full width, concatenated and projected back.
        qkv_bias: Which of the three projections have a bias.
        qk_norm: LayerNorm on each head's queries and keys.
        attn_norm: LayerNorm on what the heads give together, before their projection (EVA-02's CLIP towers, BEiT-3).
        scale: Factor on the attention scores of every block; None is 1/sqrt(d) as in the paper, 1.0 leaves them as they are.
        mlp: Activation of the MLP; ``swiglu`` gates, ``linear`` is one Linear layer and no activation.
        mlp_width: Hidden width of the MLP; None is 4 x width.
        mlp_norm: LayerNorm on the hidden units, before the last Linear (EVA-02 base).
        class_token: Prepend a learned class token.
        distillation_token: Prepend DeiT's second learned token.
        registers: How many register tokens follow the class token.
        position: Position information added to the tokens once (``conditional``: after the first block).
        position_prefix: Whether class and distillation token have positions of their own.
        position_registers: Whether registers have positions too, after those of the class token (timm's so150m).
        position_resample: How a learned table is resampled to another grid: with antialias (timm), without (transformers), or
            without and with a tenth of a patch added to the new size (Meta's DINOv2); always bicubic.
        relative_positions: A learned bias on the attention of each head for each distance between two patches (BEiT): one
            table a block, or one that all blocks share.
        rotary: Rotation of queries and keys by the patch's place: EVA-02's or DINOv3's convention.
        rotary_grid: The grid that EVA-02's rotary coordinates are scaled to, whatever the image size.
        norm_eps: Epsilon of every LayerNorm.
        pre_norm: An extra LayerNorm before the first block (CLIP).
        final_norm: Where the last LayerNorm stands: on all tokens, on the pooled vector, or nowhere.
        layer_scale: Initial value of LayerScale; None is no LayerScale.
        pool: How tokens become one vector; ``map`` is attention pooling with a learned query.
        head: What follows the pool; ``mlp`` has one hidden layer with tanh, ``distilled`` averages two Linear heads,
            ``projection`` is one Linear layer into an embedding (CLIP's space of images and text), whose numbers are not
            classes. Towers of CLIP that timm saved are ``linear``: timm calls the projection a classifier, and nothing tells it
            from one that was fine-tuned.
        head_mlp_width: Hidden width of the ``mlp`` head; None is width.
        head_bias: Whether the head has a bias.
        classes: Outputs of the head, for a ``projection`` the width of its embedding; 0 exactly when head is ``none``.
        labels: Class names in output order, or nothing; nothing for a ``projection``.
        problem: What the head's numbers are: ``single_label`` logits of classes of which one is right, ``multi_label`` logits of
            labels of which each may be, or ``regression``, quantities as they are.
        probabilities: Whether the file ends with the softmax or sigmoid that others leave to their caller.
        merged: Tokens that the file merges behind the attention of each block (`schedule`); empty for none. The PyTorch original
            merges none: what is lost is told against it.
        output_name: What the file calls its main output; "" is the name that `output` gives it by the head.
    """

    name: str
    network: Literal["vit", "module"] = "vit"
    source: str = ""
    input: InputContract = msgspec.field(default_factory=InputContract)
    patch: tuple[int, int] = (16, 16)
    embed: Literal["conv", "linear"] = "conv"
    patch_bias: bool = True
    width: int = 768
    depth: int = 12
    heads: int = 12
    head_width: int | None = None
    qkv_bias: QkvBias = "qkv"
    qk_norm: bool = False
    attn_norm: bool = False
    scale: float | None = None
    mlp: Mlp = "gelu"
    mlp_width: int | None = None
    mlp_norm: bool = False
    class_token: bool = True
    distillation_token: bool = False
    registers: int = 0
    position: Position = "learned"
    position_prefix: bool = True
    position_registers: bool = False
    position_resample: Resample = "bicubic-antialias"
    relative_positions: Relative = "none"
    rotary: Rotary = "none"
    rotary_grid: tuple[int, int] = (16, 16)
    norm_eps: float = 1e-6
    pre_norm: bool = False
    final_norm: FinalNorm = "tokens"
    layer_scale: float | None = None
    pool: Pool = "cls"
    head: Head = "linear"
    head_mlp_width: int | None = None
    head_bias: bool = True
    classes: int = 1000
    labels: tuple[str, ...] = ()
    problem: Problem = "single_label"
    probabilities: bool = False
    merged: tuple[int, ...] = ()
    output_name: str = ""

    def __post_init__(self) -> None:
        """Refuse numbers that no network has."""
        if self.network == "vit":
            _check_sizes(self)
            _check_tokens(self)
        elif min(self.patch) < 1:
            raise UsageError("VD2003", f"model {self.name!r} has a patch of {self.patch[0]} x {self.patch[1]}")
        _check_head(self)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.input.height // self.patch[0], self.input.width // self.patch[1]

    @property
    def patches(self) -> int:
        """N, the number of patches."""
        return self.grid[0] * self.grid[1]

    @property
    def prefix(self) -> int:
        """Tokens before the patches: class, distillation and registers."""
        return self.class_token + self.distillation_token + self.registers

    @property
    def tokens(self) -> int:
        """Length of the sequence that the blocks see."""
        return self.prefix + self.patches

    @property
    def positions(self) -> int:
        """Rows of the position table."""
        own = self.class_token + self.distillation_token if self.position_prefix else 0
        return self.patches + own + (self.registers if self.position_registers else 0)

    @property
    def distances(self) -> int:
        """Rows of a table of relative positions: each distance between two patches, and three for prefix tokens."""
        return (2 * self.grid[0] - 1) * (2 * self.grid[1] - 1) + 3

    @property
    def head_size(self) -> int:
        """d, the width of one head."""
        return self.head_width or self.width // self.heads

    @property
    def inner(self) -> int:
        """Width of queries, keys and values: heads x head size."""
        return self.heads * self.head_size

    @property
    def mlp_size(self) -> int:
        """Hidden width of the MLP."""
        return self.mlp_width or 4 * self.width

    @property
    def pooled_size(self) -> int:
        """Width of the pooled vector."""
        return self.width * (2 if self.pool == "cls+mean" else 1)

    @property
    def classifies(self) -> bool:
        """Whether the main output chooses one of several classes."""
        return self.task == "single_label"

    @property
    def task(self) -> Task:
        """What the main output is: ``embedding`` for features and a projection, else `problem`.

        One number chooses among nothing: it is a ``regression`` where it is not said to be a label's.

        Source: transformers, ``PreTrainedConfig``, which refuses single_label_classification with one label.
        """
        if self.head in ("none", "projection"):
            return "embedding"
        return "regression" if self.problem == "single_label" and self.classes == 1 else self.problem

    @property
    def output(self) -> str:
        """Name of the main output: `output_name`, or by the head.

        ``logits`` [N, classes]; ``embedding`` [N, classes], not normalised, of a projection; or ``pooled`` [N, pooled_size]
        without head.
        """
        return self.output_name or {"none": "pooled", "projection": "embedding"}.get(self.head, "logits")

    @property
    def output_size(self) -> int:
        """K, how many numbers the main output [N, K] has for an image."""
        return self.classes or self.pooled_size

    def change_task(self, task: Task) -> ModelSpec:
        """The same numbers, taken for something else than they were.

        Raises:
            UsageError: VD2006, the head can't give that.
        """
        if task != "embedding":
            head: Head = "linear" if self.head == "projection" else self.head
            return msgspec.structs.replace(self, head=head, problem=task)
        if self.head not in ("none", "projection", "linear"):
            raise UsageError("VD2006", f"a head that is {self.head!r} gives no embedding", fix="leave the task out")
        head = "projection" if self.head == "linear" else self.head
        return msgspec.structs.replace(self, head=head, problem="single_label", labels=())

    def change_size(self, height: int, width: int) -> ModelSpec:
        """The same network for another image size; learned positions are resampled when weights are loaded."""
        return msgspec.structs.replace(self, input=self.input.change_size(height, width))


def read_spec(path: Path) -> ModelSpec:
    """Read a `ModelSpec` from a TOML or JSON file.

    Raises:
        InputError: VD3001, unreadable.
        UsageError: VD2002, VD2003, VD2007 as `tomlfile.read_toml`, and what `ModelSpec` itself refuses.
    """
    return read_toml(path, ModelSpec)


class SpecFields(TypedDict, total=False):
    """Some fields of `ModelSpec`, of the same names and types: what is known so far of a network that is being told."""

    name: str
    source: str
    input: InputContract
    patch: tuple[int, int]
    patch_bias: bool
    width: int
    depth: int
    heads: int
    head_width: int | None
    qkv_bias: QkvBias
    qk_norm: bool
    attn_norm: bool
    scale: float | None
    mlp: Mlp
    mlp_width: int | None
    mlp_norm: bool
    class_token: bool
    distillation_token: bool
    registers: int
    position: Position
    position_prefix: bool
    position_registers: bool
    position_resample: Resample
    relative_positions: Relative
    rotary: Rotary
    rotary_grid: tuple[int, int]
    norm_eps: float
    pre_norm: bool
    final_norm: FinalNorm
    layer_scale: float | None
    pool: Pool
    head: Head
    head_mlp_width: int | None
    head_bias: bool
    classes: int
    labels: tuple[str, ...]
    problem: Problem


def _check_sizes(spec: ModelSpec) -> None:
    given = [size for size in (spec.head_width, spec.mlp_width, spec.head_mlp_width) if size is not None]
    if min(*spec.patch, spec.width, spec.depth, spec.heads, *given) < 1:
        raise UsageError("VD2003", f"model {spec.name!r} has a size below 1 (patch, width, depth, heads or a hidden width)")
    largest = max(*spec.patch, spec.width, spec.depth, spec.heads, spec.registers, *given)
    if max(largest, spec.input.height, spec.input.width) > LARGEST:
        raise UsageError("VD2003", f"model {spec.name!r} has a size of {largest:,}, at most {LARGEST:,} is built")
    if not (min(spec.rotary_grid) > 0 and math.isfinite(spec.layer_scale or 0.0)):
        raise UsageError("VD2003", f"model {spec.name!r} has rotary_grid {spec.rotary_grid}, layer_scale {spec.layer_scale}")
    if spec.scale is not None and not 0 < spec.scale < math.inf:
        message = f"model {spec.name!r} multiplies its attention scores by {spec.scale}"
        raise UsageError("VD2003", message, fix="use a number above 0 (1.0 is no scale), or leave scale out for 1/sqrt(d)")
    if spec.registers < 0 or not 0 < spec.norm_eps < 1:
        raise UsageError("VD2003", f"model {spec.name!r} has {spec.registers} registers and norm_eps {spec.norm_eps}")
    for side, pixels, patch in zip(("height", "width"), (spec.input.height, spec.input.width), spec.patch, strict=True):
        if pixels % patch:
            near = max(patch, round(pixels / patch) * patch)
            message = f"image {side} {pixels} is not a multiple of the patch {patch}"
            raise UsageError("VD2004", message, fix=f"use {near}")
    if (spec.head_width is None or spec.pool == "map") and spec.width % spec.heads:
        dividers = [h for h in range(1, spec.width + 1) if spec.width % h == 0]
        best = min(dividers, key=lambda h: abs(h - spec.heads))
        message = f"{spec.heads} heads do not divide the width {spec.width}"
        other = "" if spec.pool == "map" else ", or give head_width"  # the pool's own heads always divide the width
        raise UsageError("VD2005", message, fix=f"use {best} heads{other}")
    if spec.rotary != "none" and spec.head_size % 4:
        raise UsageError("VD2006", f"rotary positions need a head size divisible by 4, this one is {spec.head_size}")
    if spec.position == "sincos2d" and spec.width % 4:
        raise UsageError("VD2006", f"2-D sine-cosine positions need a width divisible by 4, this one is {spec.width}")
    if spec.position == "sinusoidal" and spec.width % 2:
        raise UsageError("VD2006", f"sinusoidal positions need an even width, this one is {spec.width}")


def _check_tokens(spec: ModelSpec) -> None:
    if spec.distillation_token and not spec.class_token:
        raise UsageError("VD2006", "a distillation token needs a class token", fix="set class_token = true")
    if spec.pool in ("cls", "cls+mean") and not spec.class_token:
        raise UsageError("VD2006", f"pool {spec.pool!r} needs a class token", fix="set class_token = true, or pool = 'mean'")
    if spec.position_registers and not spec.position_prefix:
        message = "registers have positions only where the class token has one"
        raise UsageError("VD2006", message, fix="set position_prefix = true")
    if spec.mlp_norm and spec.mlp == "linear":
        raise UsageError("VD2006", "mlp_norm needs an MLP with a hidden layer, not mlp = 'linear'")


def _check_head(spec: ModelSpec) -> None:
    if (spec.head == "none") != (spec.classes == 0):
        message = f"head is {spec.head!r} but classes is {spec.classes}"
        raise UsageError("VD2006", message, fix="set head = 'none' and classes = 0 together")
    if spec.classes < 0:
        raise UsageError("VD2003", f"classes is {spec.classes}")
    if spec.head == "distilled" and not (spec.distillation_token and spec.pool == "cls"):
        raise UsageError("VD2006", "a distilled head needs a distillation token and pool = 'cls'")
    if spec.labels and spec.head == "projection":
        message = f"{len(spec.labels)} labels, but a projection gives an embedding, not classes"
        raise UsageError("VD2006", message, fix="leave out labels, or set head = 'linear'")
    if spec.problem != "single_label" and spec.head in ("none", "projection"):
        message = f"problem is {spec.problem!r}, but head = {spec.head!r} gives an embedding"
        raise UsageError("VD2006", message, fix="leave out problem, or set head = 'linear'")
    if spec.labels and len(spec.labels) != spec.classes:
        raise UsageError("VD2003", f"{len(spec.labels)} labels for {spec.classes} classes")
